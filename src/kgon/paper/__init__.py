"""The paper, item by item: what it says, what kgon computes, and a verdict by rule.

`rows` has the rules. `theory`, `errata`, `dynamics`, `antecedents`, `bayes`, `superposition` and
others make the items' rows, `drawings` and `elhage_drawings` the figures from data that are
written beside them. `jobs` lists the runs that items need, `items` the items, and `page` writes it
all down.
"""
