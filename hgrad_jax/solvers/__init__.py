"""Linear systems A x = b whose matrix is only known by its products, on pytrees.

Each solver is a choice of settings with one method, `solve(matvec, b) -> (x, SolveInfo)`, a pure
function that runs under `jit` and `vmap`. It reports what it reached: the residual of the x that is
returned, computed anew and not by the recursion that led there, and the least curvature it met. No
preconditioners. Not differentiable in reverse mode. Not lineax: its solvers report neither the
curvature nor a residual computed anew, by which `Implicit` tells what cannot be believed.
"""
