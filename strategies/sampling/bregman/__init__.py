"""Bregman decoding: l0-penalised Bregman projection of a distribution (Noarov et al., arXiv 2505.19371).

`parameters` is the request's model, `plan` groups a batch's rows, `decode` runs them; `generator`, `candidates`,
`select` and `renormalise` hold the mathematics.
"""
