"""Losses whose gradient is not that of a function: a rule in them scales, clips or reverses it."""

import contextlib
import functools
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import hijax
from jax.extend.core import Primitive
from jax.interpreters import ad

import hgrad_jax as hg
from hgrad_jax.tools import foreign_rules, measured_rules
from hgrad_jax.tools.foreign_rules import has_foreign_rule
from hgrad_jax.tools.jaxprs import equations
from hgrad_jax.tools.measured_rules import is_untrue

X = jax.random.normal(jax.random.key(0), (30, 3))
Y = jnp.tanh(X @ jnp.array([1.0, -1.0, 0.5]))
START = {"a": jnp.array([0.1, 0.2, 0.3]), "b": jnp.float32(0.5)}


@jax.custom_vjp
def slow(x):
    """A layer that is trained at a tenth of the rate."""
    return x


slow.defvjp(lambda x: (x, None), lambda _, bar: (0.1 * bar,))


def loss(params, hparams, batch, key):
    error = jnp.tanh(X @ slow(params["a"])) * params["b"] - Y
    squares = jnp.sum(slow(params["a"]) ** 2) + params["b"] ** 2
    return jnp.mean(error**2) + jnp.exp(hparams["l2"]) * squares


@pytest.mark.compiled
@pytest.mark.parametrize("make_rule", [hg.heavy_ball, hg.adam])
def test_exact_adjoints_agree(make_rule):
    """The Jacobian of such a gradient is not symmetric, so it must be transposed."""
    settings = {"momentum": 0.9} if make_rule is hg.heavy_ball else {}
    rule = make_rule(loss, learning_rate=0.1, **settings)

    @jax.jit
    def found(l2):
        def end(l2, adjoint):
            out = hg.unroll(hg.Run(rule, num_steps=40, adjoint=adjoint), START, {"l2": l2}, None)
            return jnp.mean((jnp.tanh(X @ out.params["a"]) * out.params["b"] - Y) ** 2)

        adjoints = (hg.Direct(), hg.Reversible(), hg.Reversible(share_gradient=False))
        return [jax.grad(end)(l2, adjoint) for adjoint in adjoints]

    want, *others = found(jnp.float32(-3))
    assert abs(want) > 1e-3
    np.testing.assert_allclose(others, want, rtol=1e-4)


def test_implicit_derivatives_are_those_of_the_condition():
    """Products with what `jax.grad` returns, transposed: as `Root` takes them."""

    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, bar: (bar / 2,))

    def distorted(params, hparams, batch, key):
        return jnp.sum((halved(params) - hparams["a"]) ** 2) + jnp.sum(params**2)

    def end(a, condition):
        rule = hg.heavy_ball(distorted, learning_rate=0.1, momentum=0.5)
        adjoint = hg.Implicit(condition, hg.GMRES())
        out = hg.unroll(hg.Run(rule, num_steps=200, adjoint=adjoint), jnp.ones(2), {"a": a}, None)
        return jnp.sum(out.params)

    a = jnp.array([1.0, 3.0])
    # At rest (w - a) + 2 w = 0, half the first term's gradient and all of the second's.
    for condition in (hg.Stationary(distorted), hg.Root(jax.grad(distorted))):
        np.testing.assert_allclose(jax.grad(end)(a, condition), 1 / 3, rtol=1e-4)


def test_a_custom_vjp_is_found_at_any_depth():
    def in_a_loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: slow(y), x)

    assert has_foreign_rule(in_a_loop, 1.0)
    assert has_foreign_rule(jax.jit(lambda x: jax.vmap(slow)(x)), jnp.ones(2))
    assert not has_foreign_rule(jax.nn.relu, 1.0)


@jax.custom_jvp
def scale_gradient(x, s):
    """Scales the gradient that passes it."""
    return x


@scale_gradient.defjvp
def _(primals, tangents):  # pyright: ignore[reportUnusedFunction]
    return primals[0], primals[1] * tangents[0]


EXACT = (
    hg.Direct(),
    hg.Checkpointed(),
    hg.ForwardMode(),
    hg.Reversible(),
    hg.Reversible(share_gradient=False),
    hg.Waypoints(11),
    hg.Waypoints(3, undone_steps=5),
)


def all_derivatives(rule, hparams, adjoints=EXACT):
    """Returns the derivative in `scale` of ten steps from zero, by each adjoint."""

    @jax.jit
    def found(hparams):
        def end(hparams, adjoint):
            out = hg.unroll(
                hg.Run(rule, num_steps=10, adjoint=adjoint), jnp.float32(0), hparams, None
            )
            return out.params

        return [jax.grad(end)(hparams, adjoint)["scale"] for adjoint in adjoints]

    return found(hparams)


HPARAMS = {"learning_rate": 0.1, "momentum": 0.5, "scale": 1.0}


def test_a_custom_jvp_that_is_no_derivative():
    """0.338868 by float64 differences; taken for symmetric, the product would be zero."""

    def scaled(params, hparams, batch, key):
        return 0.5 * (scale_gradient(params, hparams["scale"]) - 1.0) ** 2

    found = all_derivatives(hg.heavy_ball(scaled), HPARAMS)
    np.testing.assert_allclose(found, 0.338868, atol=2e-6)


def phantom_root(x):
    """The root z of z = tanh(0.3 z + x), with the derivative that one step to it would have."""

    def distance(z):
        return z - jnp.tanh(0.3 * z + x)

    def nearer(distance, z):
        return jax.lax.fori_loop(0, 30, lambda _, z: z - 0.7 * distance(z), z)

    return jax.lax.custom_root(distance, jnp.zeros_like(x), nearer, lambda _, y: y)


def phantom_solution(x):
    """x / 2, with the derivative x of which neither this nor its transpose is."""
    return jax.lax.custom_linear_solve(
        lambda z: 2 * z, x, solve=lambda _, b: b / 2, transpose_solve=lambda _, b: b
    )


def test_phantom_gradients_of_implicit_layers():
    def through_a_root(params, hparams, batch, key):
        return 0.5 * (phantom_root(params * hparams["scale"] + 0.2) - 0.4) ** 2

    found = all_derivatives(hg.heavy_ball(through_a_root), HPARAMS | {"scale": 1.3})
    assert abs(found[0]) > 0.01
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_solvers_are_as_true_as_who_wrote_them():
    for function in (phantom_root, phantom_solution):
        assert has_foreign_rule(jax.jit(function), jnp.ones(2))
    for function in (jnp.linalg.inv, jax.scipy.linalg.expm):
        assert not has_foreign_rule(function, jnp.eye(2))


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, bar: (bar,))


class TestForwardMode:
    """Which a `custom_vjp` does not have, whoever wrote it."""

    def end(self, scale, adjoint, layer=lambda x: x, gradient=hg.backpropagation):
        def scaled(params, hparams, batch, key):
            return 0.5 * (layer(params) - 3 * hparams["scale"]) ** 2

        rule = hg.heavy_ball(scaled, learning_rate=0.1, momentum=0.5, gradient=gradient)
        run = hg.Run(rule, num_steps=4, adjoint=adjoint)
        return hg.unroll(run, jnp.float32(0), {"scale": scale}, None, key=jax.random.key(0)).params

    @pytest.mark.parametrize(
        "adjoint",
        [hg.Reversible(), hg.Waypoints(5), hg.DrMAD(), hg.DrMAD2(), hg.Implicit()],
        ids=lambda adjoint: type(adjoint).__name__,
    )
    def test_of_adjoints_that_have_a_rule_of_their_own(self, adjoint):
        for wrap in (lambda f: f, jax.jit):
            with pytest.raises(TypeError) as caught:
                wrap(jax.jacfwd(lambda scale: self.end(scale, adjoint)))(1.0)
            assert f"adjoint is {type(adjoint).__name__}(), which is differentiated in re" in str(
                caught.value
            )
            assert "for jax.jvp, jax.jacfwd or jax.hessian take Direct()" in str(caught.value)

    def test_of_a_loss_that_has_one(self):
        refusal = "forward mode here, but the loss has a custom_vjp, .* write its rule as a custom"
        for adjoint in (hg.Direct(), hg.Checkpointed()):
            with pytest.raises(TypeError, match=refusal):
                jax.jacfwd(lambda scale, a=adjoint: self.end(scale, a, rounded))(1.0)
        with pytest.raises(TypeError, match=refusal):
            jax.grad(lambda scale: self.end(scale, hg.ForwardMode(), rounded))(1.0)

    def test_of_gradients_in_forward_mode(self):
        for gradient in (
            hg.forward_gradient(),
            hg.forward_gradient(num_directions=2),
            hg.forward_gradient(is_joint=False),
        ):
            for adjoint in (hg.Direct(), hg.Reversible()):
                with pytest.raises(TypeError, match=r"or train with gradient=hg\.backpropagation"):
                    self.end(1.0, adjoint, rounded, gradient)


@pytest.mark.parametrize(
    "adjoint", [hg.Direct(), hg.Reversible(), hg.Implicit(solver=hg.GMRES())], ids=str
)
def test_where_training_with_a_scaled_gradient_comes_to_rest(adjoint):
    """At p = 1 / (1 + s), whose derivative is -1/4 at s = 1."""

    def scaled(params, hparams, batch, key):
        s = hparams["scale"]
        return 0.5 * (params - 1) ** 2 + 0.5 * scale_gradient(params, s) ** 2

    @jax.jit
    def slope(s):
        def end(s):
            rule = hg.heavy_ball(scaled, learning_rate=0.1, momentum=0.5)
            run = hg.Run(rule, num_steps=200, adjoint=adjoint)
            return hg.unroll(run, jnp.float32(0), {"scale": s}, None).params

        return jax.grad(end)(s)

    np.testing.assert_allclose(slope(1.0), -0.25, rtol=1e-4)


def test_straight_through_estimators_have_one_hypergradient():
    """What is held fixed stays fixed in the second derivative too, so that this is symmetric.

    x + stop_gradient(round(x) - x) differs from x by a number that no derivative sees: with
    loss (y - s)^2 / 2 at y = round(p), p moves by rate * (s - y), which s moves by the rate.
    """

    def rounded(x):
        return x + jax.lax.stop_gradient(jnp.round(x) - x)

    def quantized(params, hparams, batch, key):
        return 0.5 * (rounded(params) - 3 * hparams["scale"]) ** 2

    found = all_derivatives(hg.heavy_ball(quantized), HPARAMS)
    assert abs(found[0]) > 0.1
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_products_of_a_gradient_that_is_not_one_are_transposed():
    """With J = d jax.grad / d(p, s): J^T u, not J u, which the mixed derivative would swap."""

    def scaled(params, s):
        return 0.5 * jnp.sum((scale_gradient(params, s) - 1.0) ** 2)

    p, u, s = jnp.array([0.5, 2.0]), jnp.array([1.0, -3.0]), jnp.float32(0.7)
    # The rule returns its first argument, so grad = s (p - 1): J_s = p - 1 and J_p = s.
    np.testing.assert_allclose(hg.mixed_product(scaled, p, s, u), u @ (p - 1), rtol=1e-6)
    np.testing.assert_allclose(hg.hvp(scaled, p, u, s), s * u, rtol=1e-6)


def test_rules_of_jax_are_taken_for_derivatives():
    rules = (jax.nn.relu, jax.nn.softmax, jax.nn.gelu, jax.nn.logsumexp, jax.nn.silu, jnp.sinc)
    for rule in (*rules, nn.softmax, jax.scipy.special.logit):
        assert not has_foreign_rule(rule, jnp.array([0.25, 0.5]))


NOT_TWICE = ("exp1", "expn")
"""What JAX cannot differentiate twice."""


def functions_with_rules():
    """All public functions of JAX and flax of one or two arrays that have rules of their own."""
    x = jnp.full(3, 0.5)
    for module in (jnp, jax.nn, jax.scipy.special, nn):
        for name, function in sorted(vars(module).items()):
            if (
                name.startswith("_")
                or name in NOT_TWICE
                or not callable(function)
                or isinstance(function, type)
            ):
                continue
            for args in ((x,), (x, x)):
                with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
                    if "custom_jvp_call" in str(jax.make_jaxpr(function)(*args)):
                        yield f"{module.__name__}.{name}", function, len(args)
                        break


@pytest.mark.slow
def test_the_rules_of_jax_are_derivatives():
    """Of each function: the Hessian of a sum is symmetric, and the differences of its gradient."""
    names = set()
    with jax.enable_x64(True):
        mix = jnp.asarray([[0.3, -0.2, 0.1], [0.2, 0.4, -0.1], [-0.1, 0.2, 0.3]])
        x, step = jnp.asarray([0.31, 0.42, 0.57]), 1e-5
        for name, function, num_args in functions_with_rules():

            def total(x, function=function, num_args=num_args, name=name):
                near = 1.5 if name.endswith("zeta") else 0.5  # which is of numbers above one
                args = (near + mix @ x, 0.6 + mix.T @ x)[:num_args]
                found = jax.tree.leaves(function(*args))
                assert not has_foreign_rule(function, *args)
                return sum(jnp.vdot(jnp.arange(1.0, 4.0), jnp.real(y)) for y in found)

            slope = jax.grad(total)
            forward, backward = jax.jit(lambda x, f=slope: (jax.jacfwd(f)(x), jax.jacrev(f)(x)))(x)
            both = jax.jit(jax.vmap(lambda x, f=total: jnp.append(jax.grad(f)(x), f(x))))
            ends = both(x + step * jnp.concatenate([jnp.eye(3), -jnp.eye(3)]))
            moved = (ends[:3] - ends[3:]) / (2 * step)
            np.testing.assert_allclose(forward, backward, rtol=1e-9, atol=1e-9, err_msg=name)
            np.testing.assert_allclose(forward, forward.T, rtol=1e-9, atol=1e-9, err_msg=name)
            np.testing.assert_allclose(slope(x), moved[:, 3], rtol=1e-6, atol=1e-8, err_msg=name)
            np.testing.assert_allclose(forward, moved[:, :3], rtol=1e-6, atol=1e-7, err_msg=name)
            names.add(name)
    assert len(names) > 30
    assert {"jax.nn.relu", "jax.nn.softplus", "jax.numpy.logaddexp"} <= names


def test_rules_of_users_are_not_even_of_jax_functions():
    """`defjvps` puts a function of JAX around the user's; `custom_jvp(jnp.sin)` is of JAX too."""
    mine = jax.custom_jvp(jnp.sin)
    mine.defjvps(lambda dot, out, x: 2 * dot)

    def scanned(x):
        return jax.lax.scan(lambda x, _: (mine(x), None), x, None, length=2)[0]

    def in_a_branch(x):
        return jax.lax.cond(jnp.sum(x) > 0, mine, jnp.sin, x)

    for function in (mine, scanned, in_a_branch):
        for wrap in (jax.jit, jax.checkpoint, jax.vmap):
            assert has_foreign_rule(wrap(function), jnp.ones(2))


def as_if_of_jax(function, name="jax.nn"):
    """Returns a function that its module and its file say is JAX's."""
    function.__module__ = name
    where = os.path.join("site-packages", *name.split("."), "functions.py")
    function.__code__ = function.__code__.replace(co_filename=where)
    return function


class TestMeasuredRules:
    """Rules that pass for JAX's, as one of a coming version that is wrong would."""

    def scaled(self):
        function = jax.custom_jvp(as_if_of_jax(lambda x, s: 1 * x))
        function.defjvp(as_if_of_jax(lambda p, t: (1 * p[0], p[1] * t[0])))
        return function

    def test_the_hypergradient_is_right(self):
        """0.338868 by float64 differences, as where the rule is known to be a user's."""
        scale = self.scaled()

        def loss(params, hparams, batch, key):
            return 0.5 * (scale(params, hparams["scale"]) - 1.0) ** 2

        found = all_derivatives(hg.heavy_ball(loss), HPARAMS)
        np.testing.assert_allclose(found, 0.338868, atol=2e-6)

    def test_by_what_it_is_found(self, monkeypatch):
        """By the measurement alone: without it, the rule is taken for JAX's."""
        monkeypatch.setattr(foreign_rules, "is_untrue", lambda equation: False)
        assert not has_foreign_rule(self.scaled(), jnp.ones(3), 2.0)
        monkeypatch.undo()
        assert has_foreign_rule(self.scaled(), jnp.ones(3), 2.0)

    @pytest.mark.parametrize("tangent", [jnp.negative, jnp.zeros_like, lambda t: 1.5 * t])
    @pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
    def test_rules_that_are_not_derivatives(self, tangent, shape):
        function = jax.custom_jvp(jnp.sin)
        function.defjvps(lambda t, out, x: tangent(t) * jnp.cos(x))
        assert measured(function, jnp.ones(shape)) == [True]

    def test_rules_that_are(self):
        function = jax.custom_jvp(jnp.sin)
        function.defjvps(lambda t, out, x: t * jnp.cos(x))
        assert measured(function, jnp.ones((3, 4))) == [False]
        x = jnp.ones(50)
        for function, num_args in ((jnp.frexp, 1), (jnp.logaddexp, 2), (jax.nn.relu, 1)):
            assert not any(measured(function, *[x] * num_args))
        with jax.enable_x64(True):
            assert measured(jax.nn.relu, jnp.ones((50, 2), jnp.float32)) == [False]

    def test_what_cannot_be_measured_is_left_to_who_wrote_it(self):
        untrue = jax.custom_jvp(lambda x: jnp.log(-(x**2)))  # finite nowhere
        untrue.defjvps(lambda t, out, x: t)
        assert measured(untrue, jnp.ones(3)) == [False]
        for function in (jnp.linalg.det, jnp.linalg.pinv):  # which take seconds
            assert not any(measured(function, jnp.eye(3)))

    def test_what_could_not_be_measured_is_measured_at_the_next_meeting(self, monkeypatch):
        monkeypatch.setattr(measured_rules, "_found", {})
        function = self.scaled()
        assert measured(function, jnp.ones(0), 2.0) == [False]
        assert measured(function, jnp.ones(3), 2.0) == [True]

    def test_rules_that_are_wrong_far_from_zero_or_a_little(self):
        unbounded = jax.custom_jvp(lambda x: jnp.clip(x, 0, 6))
        unbounded.defjvps(lambda t, out, x: jnp.where(x > 0, t, 0))
        nearly = jax.custom_jvp(jnp.sin)
        nearly.defjvps(lambda t, out, x: 0.95 * t * jnp.cos(x))
        for function in (unbounded, nearly):
            assert measured(function, jnp.ones(100)) == [True]

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
    def test_in_each_precision(self, dtype):
        x = jnp.ones(50, dtype)
        assert measured(self.scaled(), x, dtype(2)) == [True]
        for function, num_args in ((jax.nn.relu, 1), (jnp.logaddexp, 2), (jax.nn.relu6, 1)):
            assert not any(measured(function, *[x] * num_args))

    def test_a_rule_of_two_functions_of_jax(self):
        """Nobody's, but put together by a user; `Reversible()` gave 0.0, unflagged."""
        rule = functools.partial(jnp.einsum, "...,...,...,...->...")
        half = jnp.bfloat16
        for convert in (lambda x: x.astype(half), lambda x: x):
            function = jax.custom_jvp(jnp.hypot)
            function.defjvps(rule, None)

            def loss(params, hparams, batch, key, function=function, convert=convert):
                scale = convert(hparams["scale"] + 0 * params)
                error = function(convert(params), scale).astype(jnp.float32) - 1
                return jnp.sum(0.5 * error**2) + 0.05 * jnp.sum(params**2)

            def end(scale, adjoint, loss=loss):
                rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
                run = hg.Run(rule, num_steps=10, adjoint=adjoint)
                start = jnp.full(3, 0.3)
                return hg.unroll(run, start, {"scale": scale}, None).params.sum()

            for adjoint in (hg.Direct(), hg.Reversible()):
                found = jax.grad(end)(jnp.float32(1.3), adjoint)
                np.testing.assert_allclose(found, -0.238, rtol=0.01)

    @pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                "Explicit",
                marks=pytest.mark.skipif(
                    jax.__version_info__ < (0, 10, 1),
                    reason="JAX 0.10.0 cannot multiply what is sharded so, in a derivative",
                ),
            ),
            "Auto",
        ],
    )
    @pytest.mark.parametrize("function", [jax.nn.relu, jnp.logaddexp], ids=["relu", "logaddexp"])
    def test_where_shardings_are_in_the_types(self, kind, function):
        kinds = (getattr(jax.sharding.AxisType, kind),)
        mesh = jax.make_mesh((1,), ("d",), axis_types=kinds)
        spec = jax.sharding.PartitionSpec
        args = () if function is jax.nn.relu else (0.5,)

        def within(params, x):
            return jax.lax.pmean(jnp.mean(function(x @ params, *args) ** 2), "d")

        def loss(params, x):
            if kind == "Explicit":
                return jnp.mean(function(x @ params, *args) ** 2)
            specs = (spec(), spec("d"))
            return jax.shard_map(within, mesh=mesh, in_specs=specs, out_specs=spec())(params, x)

        params, u, x = jnp.ones(3), jnp.arange(3.0), jnp.linspace(-1, 2, 12).reshape(4, 3)
        want = jax.hessian(lambda p: jnp.mean(function(x @ p, *args) ** 2))(params) @ u
        with jax.set_mesh(mesh):
            placed = jax.device_put(x, jax.NamedSharding(mesh, spec("d")))
            found = jax.jit(lambda p, u, x: hg.hvp(loss, p, u, x))(params, u, placed)
        np.testing.assert_allclose(found, want, rtol=1e-5)

    def test_where_no_number_may_be_nan_or_moved_to_a_device(self):
        outside = jax.custom_jvp(lambda x: jnp.sqrt(x - 100))
        outside.defjvps(lambda t, out, x: t / (2 * out))
        with jax.debug_nans(True), jax.transfer_guard("disallow"):
            assert measured(outside, jax.device_put(np.full(3, 101.0, np.float32))) == [False]


def measured(function, *args):
    found = equations(jax.make_jaxpr(function)(*args))
    return [is_untrue(e) for e in found if e.primitive.name == "custom_jvp_call"]


class Rule:
    """A rule that is an object: the derivative of nothing."""

    def __call__(self, tangent, *others):
        return 2 * tangent


@pytest.mark.parametrize(
    "wrap", [lambda rule: rule, functools.partial, jax.jit], ids=["itself", "partial", "jit"]
)
def test_rules_that_are_objects(wrap):
    mine = jax.custom_jvp(jnp.hypot)
    mine.defjvps(lambda dot, out, x, y: dot, wrap(Rule()))
    assert has_foreign_rule(mine, 1.0, 2.0)


def test_a_hypergradient_through_a_rule_that_is_an_object():
    class Scaled:
        def __call__(self, dot, out, x, y):
            return y * dot

    mine = jax.custom_jvp(jnp.hypot)
    mine.defjvps(Scaled(), None)

    def scaled(params, hparams, batch, key):
        return 0.5 * (mine(params, hparams["scale"]) - 1) ** 2

    found = all_derivatives(hg.heavy_ball(scaled), HPARAMS | {"scale": 1.3})
    assert abs(found[0]) > 0.05
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


# Its name up to JAX 0.11, and since.
HiPrimitive: Any = getattr(hijax, "VJPHiPrimitive", None) or hijax.HiPrim  # pyright: ignore


class Doubled(HiPrimitive):
    """The identity, with twice its derivative."""

    def __init__(self, x):
        self.in_avals, self.out_aval, self.params = (jax.typeof(x),), jax.typeof(x), {}
        super().__init__()

    def expand(self, *args):
        return args[0]

    def vjp_fwd(self, nzs_in, /, *args):
        return self(*args), None

    def vjp_bwd_retval(self, res, outgrad, /):
        return (2 * outgrad,)


def test_high_level_primitives_of_users():
    assert has_foreign_rule(lambda x: Doubled(x)(x), 1.0)


def a_primitive(name):
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    return primitive


def test_rules_and_transposes_of_primitives():
    by_object, reversing = a_primitive("by_object"), a_primitive("reversing")
    ad.defjvp(by_object, Rule())
    ad.deflinear2(reversing, lambda bar, x: [-bar])
    for primitive in (by_object, reversing):
        assert has_foreign_rule(primitive.bind, 1.0)


def test_a_primitive_of_a_user_is_not_taken_for_differentiated_right():
    primitive = a_primitive("doubling")
    ad.defjvp(primitive, lambda tangent, x: 2 * tangent)
    assert has_foreign_rule(primitive.bind, 1.0)
