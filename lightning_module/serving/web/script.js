// The page of `lightning serve`: sends photos, shows what both twins say. It asks nothing of any other server.
// Addresses are relative, so that a proxy may have the service in a folder.

const AT_ONCE = 4, TRIES = 8, MOST_CARDS = 200, SHOWN = 5, PROOF_LIMIT = 1e-5;
const byId = id => document.getElementById(id);
const cards = [];  // the newest first: {file, element, state, answer, explanation, error}
const waiting = [], toExplain = [];
let sending = 0, explaining = false, words = {}, facts = null, lost = false;

class Failed extends Error {  // the service's own refusal
  constructor(error, after) { super(error.message); Object.assign(this, error, {after}); }
}
class Lost extends Error {}  // no answer at all

// Words -------------------------------------------------------------------------------------------------------------
const languages = [...byId("language").options].map(option => option.value);

function say(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
const percent = value => new Intl.NumberFormat(document.documentElement.lang,
  {style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1}).format(value);

function power(value) {  // 3.2e-7 as 3.2 × 10⁻⁷
  if (value === 0) return "0";
  const [digits, exponent] = value.toExponential(1).split("e");
  const raised = [...String(Number(exponent))].map(sign => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]).join("");
  return `${new Intl.NumberFormat(document.documentElement.lang).format(digits)} × 10${raised}`;
}

async function speak(language) {
  words = await (await fetch(`languages/${language}.json`)).json();
  document.documentElement.lang = language;
  byId("language").value = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const template of document.querySelectorAll("template"))
    for (const element of template.content.querySelectorAll("[data-text]"))
      element.textContent = say(element.dataset.text);
  showFacts();
  showLost(lost);
  cards.forEach(show);
}

function chosenLanguage() {
  const asked = new URLSearchParams(location.search).get("lang");
  const wanted = [asked, localStorage.getItem("language"), ...navigator.languages].filter(Boolean);
  const known = wanted.map(each => languages.find(code => each === code || each.split("-")[0] === code));
  return known.find(Boolean) ?? "en";
}

// What the model is -------------------------------------------------------------------------------------------------
function showFacts() {
  if (!facts) return;
  document.title = `${facts.name} – ShelfTwin`;
  byId("title").textContent = facts.name;
  byId("title").removeAttribute("data-text");
  const [height, width] = facts.image_size, {accuracy, parity} = facts;
  const parts = [[say("classes", {count: facts.class_names.length})], [say("pixels", {width, height})]];
  if (accuracy) {
    const values = {value: percent(accuracy.value), photos: accuracy.photos};
    values.set = say(`set_${accuracy.set}`);
    parts.push([say("accuracy", values) + (accuracy.low === null ? "" :
      ` (95%: ${say("from_to", {low: percent(accuracy.low), high: percent(accuracy.high)})})`)]);
  }
  if (parity) parts.push([say(`parity_${parity.verdict}`, parity), parity.verdict]);
  else if (Object.keys(facts.twins).length > 1) parts.push([say("parity_none")]);
  byId("facts").replaceChildren(...parts.map(([text, kind]) => {
    const span = document.createElement("span");
    span.textContent = text;
    if (kind) span.className = kind;
    return span;
  }));
}

// The service -------------------------------------------------------------------------------------------------------
async function ask(path, file) {
  const form = new FormData();
  form.append("photos", file, file.name || "photo");
  let answer, content;
  try {
    answer = await fetch(path, {method: "POST", body: form});
    content = await answer.json();
  } catch (error) {
    throw new Lost(String(error));
  }
  if (!answer.ok) throw new Failed(content.error, Number(answer.headers.get("Retry-After")));
  return content;
}

async function patiently(path, file) {  // whoever is told to come again does
  for (let left = TRIES; ; left--) {
    try {
      return await ask(path, file);
    } catch (error) {
      if (!(error instanceof Failed) || !error.after || !left) throw error;
      await new Promise(done => setTimeout(done, error.after * 1000));
    }
  }
}

function showLost(isLost) {
  lost = isLost;
  byId("lost").hidden = !isLost;
  if (isLost) byId("lost").textContent = say("lost");
}

function loseServer() {
  if (lost) return;
  showLost(true);
  const look = async () => {
    try {
      if (!(await fetch("healthz", {cache: "no-store"})).ok) throw new Lost();
    } catch {
      setTimeout(look, 2000);
      return;
    }
    showLost(false);
    if (!facts) await learnFacts();
    cards.filter(card => card.state === "lost").reverse().forEach(queue);
  };
  setTimeout(look, 2000);
}

// Photos ------------------------------------------------------------------------------------------------------------
function add(files) {
  for (const file of files) {
    const element = byId("card").content.firstElementChild.cloneNode(true);
    const card = {file, element, state: "waiting"};
    const image = element.querySelector("img"), url = URL.createObjectURL(file);
    image.addEventListener("error", () => { image.hidden = true; });
    image.addEventListener("load", () => {
      image.parentElement.classList.toggle("wide", image.naturalWidth >= image.naturalHeight);
      showLook(card);
    });
    image.src = url;
    card.forget = () => URL.revokeObjectURL(url);
    element.querySelector(".again").addEventListener("click", () => queue(card));
    element.querySelector(".look input").addEventListener("change", () => showLook(card));
    byId("photos").prepend(element);
    cards.unshift(card);
    queue(card);
  }
  for (const old of cards.splice(MOST_CARDS)) {
    old.forget();
    old.element.remove();
  }
}

function queue(card) {
  card.state = "waiting";
  card.error = null;
  show(card);
  waiting.push(card);
  work();
}

function work() {
  while (sending < AT_ONCE && waiting.length) {
    sending++;
    label(waiting.shift()).finally(() => { sending--; work(); });
  }
}

async function label(card) {
  try {
    const answer = await patiently("predict?top=" + Math.min(SHOWN, facts?.class_names.length ?? 1), card.file);
    card.answer = answer.photos[0];
    card.milliseconds = answer.milliseconds;
    card.state = "answered";
    announce(`${card.file.name}: ${card.answer.labels[0].label}, ${percent(card.answer.labels[0].probability)}`);
    toExplain.push(card);
    explainNext();
  } catch (error) {
    take(card, error);
  }
  show(card);
}

async function explainNext() {  // one by one, after the labels
  if (explaining) return;
  explaining = true;
  while (toExplain.length) {
    const card = toExplain.shift();
    try {
      card.explanation = await patiently("explain", card.file);
    } catch (error) {
      if (error instanceof Lost) loseServer();  // the label stands, without an explanation
    }
    show(card);
  }
  explaining = false;
}

function take(card, error) {
  if (error instanceof Lost) {
    card.state = "lost";
    loseServer();
  } else if (error instanceof Failed) {
    card.state = "refused";
    card.error = error;
    announce(`${card.file.name}: ${refusal(error)}`);
  } else {
    throw error;
  }
}

const refusal = error => words[`error_${error.code}`] ?? error.message;
const announce = text => { byId("status").textContent = text; };

// A card ------------------------------------------------------------------------------------------------------------
function show(card) {
  const {element, answer, state, error} = card, part = name => element.querySelector(name);
  for (const each of element.querySelectorAll("[data-text]")) each.textContent = say(each.dataset.text);
  element.className = `result ${state === "refused" || state === "lost" ? "bad" : ""}`;
  element.setAttribute("aria-busy", state === "waiting");
  part("img").alt = say("photo_alt", {name: card.file.name});
  part("figcaption").textContent = card.file.name;
  part(".again").hidden = state !== "lost" && !(state === "refused" && error.after);
  const answered = state === "answered";
  part("h2").textContent = answered ? answer.labels[0].label :
    state === "refused" ? refusal(error) : say(state === "lost" ? "no_answer" : "waiting");
  part(".state").textContent = answered ? surety(answer) : state === "refused" ? reason(error) : "";
  part(".twins").replaceChildren(...(answered ? Object.entries(answer.twins).map(showTwin) : []));
  showDifference(card);
  showWhy(card);
}

function surety({label, labels: [first]}) {
  const values = {percent: percent(first.probability)};
  return label === first.label ? say("sure", values) :
    say("too_unsure", {...values, limit: percent(facts.min_probability)});
}

function reason(error) {
  const reasons = (error.photos ?? []).map(photo => photo.reason);
  return reasons.length ? reasons.join("; ") : words[`error_${error.code}`] ? error.message : "";
}

function showTwin([name, twin]) {
  const section = byId("twin").content.firstElementChild.cloneNode(true);
  section.querySelector("h3").textContent = say(`twin_${name}`);
  section.querySelector("ol").replaceChildren(...twin.labels.map(({label, probability}) => {
    const row = byId("bar").content.firstElementChild.cloneNode(true);
    row.querySelector(".name").textContent = label;
    row.querySelector(".number").textContent = percent(probability);
    row.querySelector("i").style.width = `${100 * probability}%`;
    return row;
  }));
  return section;
}

function showDifference({element, answer, state}) {
  const line = element.querySelector(".difference"), known = state === "answered" && "difference" in answer;
  const differs = known && (!answer.agree || answer.difference > PROOF_LIMIT);
  line.classList.toggle("differs", differs);
  line.textContent = known ?
    say(differs ? "twins_differ" : "twins_agree", {difference: power(answer.difference)}) : "";
}

function showWhy(card) {
  const {element, explanation, state} = card, why = element.querySelector(".why");
  const known = state === "answered" && explanation;
  why.hidden = element.querySelector(".look").hidden = !known;
  showLook(card);
  if (!known) return;
  why.querySelector("summary").textContent = say(explanation.unsure ? "why_unsure" : "what_to_know");
  const named = explanation.reasons.map(each => say(`reason_${each.code}`,
    {...each, ...("probability" in each ? {probability: percent(each.probability)} : {})}));
  if (!named.length) named.push(say(explanation.unsure ? "reason_none" : "reason_nothing"));
  const {probability, covered, label} = explanation;
  named.push(covered.probability < probability
    ? say("reason_covered", {from: percent(probability), to: percent(covered.probability), label})
    : say("covered_nothing", {label}));
  why.querySelector("ul").replaceChildren(...named.map(text => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

function showLook({element, explanation}) {  // orange where covering the photo costs most
  const canvas = element.querySelector("canvas"), image = element.querySelector("img");
  canvas.hidden = !explanation || !element.querySelector(".look input").checked || image.hidden;
  if (canvas.hidden) return;
  const rows = explanation.saliency, small = new ImageData(rows[0].length, rows.length);
  rows.flat().forEach((value, place) => small.data.set([255, 110, 0, Math.round(215 * value)], 4 * place));
  const cells = Object.assign(document.createElement("canvas"), {width: rows[0].length, height: rows.length});
  cells.getContext("2d").putImageData(small, 0, 0);
  Object.assign(canvas, {width: 320, height: Math.round(320 * image.naturalHeight / image.naturalWidth) || 320});
  canvas.getContext("2d").drawImage(cells, 0, 0, canvas.width, canvas.height);
}

// Drop, paste, pick -------------------------------------------------------------------------------------------------
const drop = byId("drop");
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  addEventListener(name, event => {  // anywhere: a photo that misses the box would otherwise replace the page
    event.preventDefault();
    drop.classList.toggle("over", over);
    if (name === "drop") add(event.dataTransfer.files);
  });
}
addEventListener("paste", event => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
byId("pick").addEventListener("change", event => {
  add(event.target.files);
  event.target.value = "";  // the same photo may be chosen again
});
byId("language").addEventListener("change", event => {
  localStorage.setItem("language", event.target.value);
  speak(event.target.value);
});

async function learnFacts() {
  try {
    facts = await (await fetch("model")).json();
    showFacts();
  } catch {
    loseServer();
  }
}
await speak(chosenLanguage());
await learnFacts();
document.body.dataset.ready = "true";
