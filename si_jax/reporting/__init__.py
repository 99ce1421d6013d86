"""From stored results to what a person reads: text tables, CSV, figures and one page of HTML.

In flow the results and score files of one or more runs; out flow tables, pictures and pages.
"""
