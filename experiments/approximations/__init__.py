"""How good are approximate hypergradients, and what does an exact one cost instead?"""
