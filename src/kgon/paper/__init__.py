"""The paper, item by item: what it says, what kgon computes, and a verdict by rule.

`rows` has the rules, `theory`, `dynamics`, `bayes` and `superposition` make the items' rows from
built results, `drawings` the figures from data that are written beside them, `items` says what an
item needs to have run, `page` writes it all down.
"""
