"""Operations that are recorded as several simpler ones, which Keras has: one short function for each.

`record` runs the function in the operation's place, so its steps are what the graph and the proof see. Each function
takes the operation's arguments by their names in torch's schema. It returns `NotImplemented` for a form that the
converters take as it is, or that nothing here takes. `table` has them all.
"""
