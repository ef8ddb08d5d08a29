"""Ready-made optimizers of hyperparameters, as optax transformations. Any other one serves too."""

import optax


def sign_descent(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.0
) -> optax.GradientTransformation:
    """Returns descent by the sign of the hypergradient, h' = h - learning_rate sign(g).

    Hypergradients differ by orders of magnitude between layers and steps of the training; their
    signs do not, nor do those of approximate ones lose as much. With momentum m the sign is that of
    the decayed sum u' = m u + g (Bernstein et al. 2018).

    Args:
      learning_rate: what a hyperparameter changes by, positive; or an optax schedule of it.
      momentum: 0 <= m < 1.

    Raises:
      ValueError: momentum is out of range.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> optimizer = hg.sign_descent(0.25)
      >>> hparams = jnp.zeros(3)
      >>> optimizer.update(jnp.array([3.0, -0.1, 0.0]), optimizer.init(hparams))[0]
      Array([-0.25,  0.25, -0.  ], dtype=float32)
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum!r}; it must be at least 0 and below 1.")
    return optax.chain(
        optax.trace(momentum) if momentum else optax.identity(),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(learning_rate),
    )


def nonnegative_adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Returns Adam whose steps end at zero where they would go below.

    For learning rates and coefficients that are tuned as they are. A logarithm (`hg.hyper.log`)
    keeps them above zero, and changes them by factors.

    Args:
      learning_rate: positive; or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: what is added to its root.

    Example:
      >>> import jax.numpy as jnp, optax, hgrad_jax as hg
      >>> optimizer, hparams = hg.nonnegative_adam(0.5), jnp.array([0.25, 1.0])
      >>> update, _ = optimizer.update(jnp.ones(2), optimizer.init(hparams), hparams)
      >>> print(optax.apply_updates(hparams, update).round(4))
      [0.  0.5]
    """
    return optax.chain(
        optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), optax.keep_params_nonnegative()
    )
