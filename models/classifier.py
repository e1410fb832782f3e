"""What every classifier here has in common: what it takes, what it gives, and how it is built again."""

from typing import Any, ClassVar

from torch import Tensor, nn


class Classifier(nn.Module):
    """From images, float32 (B, channels, H, W) with values 0 to 1, to `output`, (B, C).

    Attributes:
        backbone_name: timm's name of the network, or whatever it is called.
        output: what it gives, one of `OUTPUTS`.
        channels: of the images.
        trunk: module path, with its dot, of what is named by its own paths in the Keras file.
    """

    backbone_name: str
    output: str = "logits"
    channels: int = 3
    trunk: ClassVar[str] = ""

    @property
    def architecture(self) -> dict[str, Any]:
        """What must be known to build it again, in plain Python types."""
        raise NotImplementedError


def gives_of(output: str, count: int) -> str:
    """What a Keras file gives for a network with that output: `softmax` or `sigmoid`.

    A single logit is that of a yes or no, so its probability is a sigmoid: a softmax of one number is always 1.
    """
    return "sigmoid" if output == "sigmoid" or (output == "logits" and count == 1) else "softmax"


def probabilities_of(answers: Tensor, output: str) -> Tensor:
    """A network's answers, (B, C), as the probabilities that its Keras file gives.

    Args:
        answers: what the network's forward gave.
        output: what that is, one of `OUTPUTS`.
    """
    if output == "logits":
        return answers.sigmoid() if gives_of(output, answers.shape[1]) == "sigmoid" else answers.softmax(dim=1)
    return answers.exp() if output == "log_softmax" else answers
