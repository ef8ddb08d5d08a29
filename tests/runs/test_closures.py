"""What a run's functions close over is differentiated by every adjoint, and traced once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg

EXACT = (
    hg.Direct(),
    hg.Checkpointed(),
    hg.ForwardMode(),
    hg.Reversible(),
    hg.Reversible(share_gradient=False),
    hg.Waypoints(6),
    hg.DrMAD2(5),
    hg.Truncated(5),
)


def end(l2, adjoint, rate=0.05):
    """The sum of the parameters after five steps with loss l2 |p|^2, from ones(3)."""

    def loss(params, hparams, batch, key):
        return l2 * jnp.sum(params**2)

    rule = hg.heavy_ball(loss, learning_rate=lambda hparams: rate, momentum=0.9)
    return jnp.sum(
        hg.unroll(hg.Run(rule, num_steps=5, adjoint=adjoint), jnp.ones(3), {}, None).params
    )


@pytest.mark.parametrize("adjoint", EXACT, ids=str)
def test_a_value_that_loss_and_rule_close_over(adjoint):
    """-3.0695 in l2; the rate enters as their product, so its derivative is ten times that."""

    @jax.jit
    def outside(l2):
        return jax.grad(end, argnums=(0, 2))(l2, adjoint, 0.05)

    found = outside(0.5)
    np.testing.assert_allclose(found[0], -3.0695, rtol=1e-4)
    np.testing.assert_allclose(found[1], 10 * found[0], rtol=1e-5)
    if adjoint in (hg.Reversible(), hg.Waypoints(6), hg.ForwardMode()):
        inside = jax.grad(jax.jit(lambda l2: end(l2, adjoint)))(0.5)
        mapped = jax.vmap(jax.grad(lambda l2: end(l2, adjoint)))(jnp.array([0.5, 0.25]))
        eager = jax.grad(end)(0.5, adjoint)
        np.testing.assert_allclose([inside, mapped[0], eager], found[0], rtol=1e-5)


@pytest.mark.parametrize(
    "adjoint", [hg.Reversible(), hg.Waypoints(7), hg.ForwardMode(), hg.DrMAD2(6)], ids=str
)
def test_what_batch_fn_and_adam_close_over(adjoint):
    """Beside hyperparameters and schedules, whose cotangents stay theirs."""

    def value(target, hparams, axes, adjoint):
        def batch_fn(data, t, key):
            return data[t % 3] * target

        def loss(params, hparams, batch, key):
            return jnp.sum((params - batch) ** 2) + hparams["l2"] * jnp.sum(params**2)

        out = hg.unroll(
            hg.Run(
                hg.adam(loss), num_steps=6, batch_fn=batch_fn, hparams_axes=axes, adjoint=adjoint
            ),
            jnp.ones(2),
            hparams,
            jnp.arange(6.0).reshape(3, 2),
        )
        return jnp.sum(out.params**2)

    @jax.jit
    def derivatives(target, rates):
        hparams = {"l2": jnp.float32(0.1), "learning_rate": rates}
        axes: dict[str, int | None] = {"l2": None, "learning_rate": None}
        if not isinstance(adjoint, hg.ForwardMode):
            hparams["learning_rate"], axes["learning_rate"] = rates * jnp.ones(6), 0
        return [
            jax.grad(lambda target, h, each=each: value(target, h, axes, each), argnums=(0, 1))(
                target, hparams
            )
            for each in (adjoint, hg.Direct())
        ]

    found, wanted = derivatives(jnp.array([0.5, -0.25]), jnp.float32(0.1))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.linalg.norm(b)) > 1e-3
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_implicit_follows_what_its_condition_closes_over():
    """At rest at (c + h 0) / (1 + h), half of c."""

    def at_rest(c, condition):
        def loss(params, hparams, batch, key):
            return jnp.sum((params - c) ** 2) + hparams * jnp.sum(params**2)

        adjoint = hg.Implicit(hg.Stationary(loss) if condition else None)
        rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
        out = hg.unroll(hg.Run(rule, num_steps=100, adjoint=adjoint), jnp.ones(3), 1.0, None)
        return jnp.sum(out.params)

    for condition in (True, False):
        np.testing.assert_allclose(jax.grad(at_rest)(2.0, condition), 1.5, rtol=1e-4)


def test_implicit_refuses_a_rate_that_the_rule_closes_over():
    with pytest.raises(ValueError, match=r"a value that a function of the run closes over: .*zero"):
        jax.grad(lambda rate: end(0.5, hg.Implicit(), rate))(0.05)


@pytest.mark.parametrize("adjoint", [hg.Reversible(), hg.Waypoints(6)], ids=str)
def test_a_record_that_closes_over_what_is_differentiated_is_refused(adjoint):
    def value(scale, adjoint):
        rule = hg.heavy_ball(
            lambda p, h, b, k: scale * jnp.sum(p**2), learning_rate=0.1, momentum=0.5
        )
        out = hg.unroll(
            hg.Run(
                rule,
                num_steps=5,
                record=lambda state, data: scale * jnp.sum(state.params),
                adjoint=adjoint,
            ),
            jnp.ones(2),
            {},
            None,
        )
        return jnp.sum(out.trace)

    with pytest.raises(ValueError, match=r"record closes over a value that is differentiated"):
        jax.grad(value)(0.5, adjoint)
    assert jnp.isfinite(jax.grad(value)(0.5, hg.Direct()))


def test_closed_over_data_cost_the_way_back_nothing():
    """They have no cotangent: the compiled memory is that of data which are passed."""
    inputs, target = jnp.ones((20_000, 50)), jnp.ones(20_000)

    def value(rate, data, is_closed):
        def loss(params, hparams, batch, key):
            x, y = data if is_closed else batch
            return jnp.mean((x @ params - y) ** 2)

        rule = hg.heavy_ball(loss, learning_rate=rate, momentum=0.9)
        given = None if is_closed else data
        run = hg.Run(rule, num_steps=4, adjoint=hg.Reversible())
        return jnp.sum(hg.unroll(run, jnp.zeros(50), {}, given).params)

    def temporary_bytes(is_closed):
        lowered = jax.jit(jax.grad(lambda r, d: value(r, d, is_closed))).lower
        memory = lowered(0.1, (inputs, target)).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary_bytes(True) < temporary_bytes(False) + inputs.nbytes // 10


@pytest.mark.parametrize("make_rule", [hg.heavy_ball, hg.adam, hg.sgd], ids=lambda f: f.__name__)
def test_a_number_drawn_while_tracing_is_one_number(make_rule):
    """One draw is used by all passes: nothing else would tell, where it changes no state."""
    generator, drawn = np.random.default_rng(0), []

    def loss(params, hparams, batch, key):
        drawn.append(generator.uniform(0.5, 1.5))
        return drawn[-1] * jnp.sum(params) + hparams["l2"] * jnp.sum(params**2)

    def pure(params, hparams, batch, key):
        return drawn[0] * jnp.sum(params) + hparams["l2"] * jnp.sum(params**2)

    settings = {"learning_rate": 0.05} | ({"momentum": 0.9} if make_rule is hg.heavy_ball else {})

    def slope(loss, adjoint):
        rule = make_rule(loss, **settings)

        def end(l2):
            run = hg.Run(rule, num_steps=5, adjoint=adjoint)
            return jnp.sum(hg.unroll(run, jnp.ones(3), {"l2": l2}, None).params)

        return jax.grad(end)(0.5)

    reversible = [] if make_rule is hg.sgd else [hg.Reversible(), hg.Waypoints(2, undone_steps=5)]
    for adjoint in (hg.Waypoints(6), hg.Checkpointed(), hg.ForwardMode(), *reversible):
        drawn.clear()
        found = slope(loss, adjoint)
        assert len(drawn) == 1
        np.testing.assert_allclose(found, slope(pure, hg.Direct()), rtol=1e-4)


def test_numbers_of_python_in_a_batch_stay_numbers():
    """A function may shape arrays by them, as where nothing is traced in between."""

    def batch_fn(data, t, key):
        return {"x": data, "width": 2, "name": "first", "tags": {"a", "b"}}

    def loss(params, hparams, batch, key):
        assert (batch["name"], batch["tags"]) == ("first", {"a", "b"})
        return jnp.sum((params * batch["x"].reshape(-1, batch["width"])) ** 2)

    rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
    run = hg.Run(rule, num_steps=3, batch_fn=batch_fn, adjoint=hg.Reversible())
    out = hg.unroll(run, jnp.ones(2), {}, jnp.arange(4.0))
    assert hg.check(out.info).nonfinite == False  # noqa: E712, a traced flag


def test_a_function_changed_between_runs_is_traced_anew():
    factor = [1.0]

    def loss(params, hparams, batch, key):
        return factor[0] * jnp.sum(params**2)

    rule = hg.sgd(loss, learning_rate=0.25)
    ends = []
    for factor[0] in (1.0, 2.0):
        ends.append(float(hg.unroll(hg.Run(rule, num_steps=1), jnp.float32(1), {}, None).params))
    assert ends == [0.5, 0.0]
