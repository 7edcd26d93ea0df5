"""The paper, item by item: what it says, what kgon computes, and a verdict by rule.

`rows` has the rules for verdicts. `theory`, `errata`, `dynamics`, `antecedents`, `bayes`,
`superposition` and others make the rows of the items; `drawings` and `elhage_drawings` draw the
figures, from data files that are written beside them. `jobs` lists the runs that the items need,
`items` lists the items, and `page` writes the page.
"""
