"""What the plan predicts is what the compiled programs take, and what it recommends follows."""

# Rows have None where an adjoint does not apply, which pyright cannot know it does.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.diagnostics.plan import Plan, plan, usual_adjoints
from hgrad_jax.diagnostics.plan_measure import extrapolated
from hgrad_jax.show.text_table import in_bytes, name_of
from tests.shared.runs import run_and_rest

pytestmark = pytest.mark.compiled

DATA = jax.random.normal(jax.random.key(0), (16, 24))
START = {"w": jnp.full((24, 24), 0.05), "v": jnp.full((24,), 0.1)}
AXES = {"learning_rate": 0, "momentum": None}
ADJOINTS = (hg.Direct(), hg.Checkpointed(), hg.Checkpointed(branching=2), hg.Reversible())


def loss(params, hparams, batch, key):
    return jnp.mean((jnp.tanh(jnp.tanh(batch @ params["w"]) @ params["w"]) @ params["v"] - 1) ** 2)


def objective(params, hparams, valid):
    return loss(params, hparams, valid, None)


def hparams_of(num_steps):
    return {"learning_rate": jnp.full(num_steps, 0.1), "momentum": jnp.float32(0.9)}


def plan_of(num_steps=200, **changes):
    given = {
        "objective": objective,
        "transition": hg.momentum(loss),
        "params": START,
        "hparams": hparams_of(num_steps),
        "data": DATA,
        "outer_data": DATA,
        "num_steps": num_steps,
        "memory": 1e6,
        "hparams_axes": AXES,
        "adjoints": ADJOINTS,
        "is_timed": False,
    }
    given |= changes
    run, rest = run_and_rest(given.pop("transition"), given)
    return plan(run=run, **rest)


ONE_RATE = {
    "transition": hg.sgd(loss),
    "hparams": {"learning_rate": 0.1},
    "hparams_axes": None,
}


@pytest.fixture(scope="module")
def untimed():
    return plan_of()


@pytest.mark.parametrize("num_steps", [200, pytest.param(3000, marks=pytest.mark.slow)])
def test_bytes_are_those_of_the_compiled_gradient(num_steps, untimed):
    few = (hg.Direct(), hg.Checkpointed(), hg.Reversible())  # the others compile slowly
    found = untimed if num_steps == 200 else plan_of(num_steps, adjoints=few)
    for row in found.rows:

        def value(params, hparams, adjoint=row.adjoint):
            run = hg.Run(hg.momentum(loss), num_steps=num_steps, hparams_axes=AXES, adjoint=adjoint)
            end = hg.unroll(run, params, hparams, DATA)
            return objective(end.params, hparams, DATA)

        gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
        analysis = gradient.lower(START, hparams_of(num_steps)).compile().memory_analysis()
        assert analysis is not None
        assert row.temp_bytes == pytest.approx(analysis.temp_size_in_bytes, rel=0.2)


def test_the_recommendation_is_the_cheapest_exact_one_that_fits(untimed):
    direct, two_levels, binary, reversible = (row.temp_bytes for row in untimed.rows)
    assert direct > 1e6 > two_levels > binary > reversible
    # As many evaluations as Direct() makes, of which the memory has room for the former alone.
    assert untimed.recommended == hg.Reversible()
    assert untimed.rows[0].why_not == f"{in_bytes(direct - 1e6)} too many"
    assert [row.why_not for row in untimed.rows[1:]] == [None] * 3
    assert "recommended: Reversible(), by the number of evaluations" in str(untimed)


def test_what_does_not_apply_says_why():
    adjoints = (hg.Reversible(), hg.Checkpointed(), hg.Truncated(5))
    found = plan_of(transition=hg.sgd(loss), adjoints=adjoints)
    reversible, checkpointed, truncated = found.rows
    assert reversible.why_not is not None
    assert "needs an update rule that can be run backwards" in reversible.why_not
    assert (reversible.work, reversible.temp_bytes) == (None, None)
    # Truncation computes less, but is never recommended.
    assert found.recommended == hg.Checkpointed()
    assert truncated.work.total < checkpointed.work.total
    assert "adjoint=Reversible() needs" in str(found)


def test_a_decay_that_reversal_cannot_undo_is_found():
    hparams = hparams_of(200) | {"momentum": jnp.float32(0.001)}
    found = plan_of(hparams=hparams, adjoints=(hg.Reversible(),))
    assert "the decay of 'velocity' is 0.001" in str(found)
    assert found.recommended is None
    assert found.advice.startswith("none of these adjoints is known to be exact and applies")


def test_where_nothing_fits_the_nearest_is_named():
    adjoints = (hg.Direct(), hg.Checkpointed())
    found = plan_of(memory=1000, adjoints=adjoints, is_timed=True)
    size = found.rows[1].temp_bytes
    assert found.recommended is None
    assert found.advice == (
        f"no exact adjoint fits; Checkpointed() comes nearest with {in_bytes(size)}, "
        f"{in_bytes(size - 1000)} too many."
    )
    # Not even the short runs fit: nothing was run.
    assert [row.seconds for row in found.rows] == [None, None]


@pytest.mark.parametrize("num_steps", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_seconds_are_estimated_for_all_that_apply(num_steps):
    adjoints = (hg.Direct(), hg.ForwardMode(), hg.Reversible())
    found = plan_of(
        num_steps,
        adjoints=adjoints,
        memory=1e12,
        is_timed=True,
        **ONE_RATE,
    )
    direct, forward, reversible = found.rows
    assert direct.seconds > 0
    assert forward.seconds > 0
    assert forward.note == "no gradient of params"
    assert reversible.seconds is None
    fastest = min((direct, forward), key=lambda row: row.seconds)
    assert found.recommended == fastest.adjoint


def test_adjoints_of_the_users_own_are_planned_too():
    class Mine(hg.Adjoint):
        def run(self, trajectory, params, inputs):
            return hg.Direct().run(trajectory, params, inputs)

        def __repr__(self):
            return "Mine()"

    found = plan_of(adjoints=(Mine(), hg.Direct()), memory=1e12)
    mine, direct = found.rows
    assert mine.work == (None, None, None)
    assert mine.temp_bytes == direct.temp_bytes
    assert found.recommended == hg.Direct()
    assert str(found).splitlines()[2].split()[:2] == ["Mine()", "?"]


def num_gradients(adjoint, num_steps=13):
    """How often the gradient is evaluated, within products or not."""
    count = [0]

    def up(_):
        count[0] += 1

    def loss(params, hparams, batch, key):
        jax.debug.callback(up, params)  # an argument, or it would leave the loop
        return jnp.sum(jnp.cosh(params))

    def end(hparams):
        run = hg.Run(hg.momentum(loss), num_steps=num_steps, adjoint=adjoint)
        return jnp.sum(hg.unroll(run, jnp.ones(2), hparams, None).params)

    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
    jax.block_until_ready(jax.jit(jax.grad(end))(hparams))
    jax.effects_barrier()
    return count[0]


@pytest.mark.parametrize(
    "adjoint",
    [
        hg.Direct(),
        hg.Checkpointed(),
        hg.Checkpointed(branching=2),
        hg.Checkpointed(branching=4),
        hg.Truncated(5),
        hg.ForwardMode(),
    ],
    ids=name_of,
)
def test_gradients_are_counted_rightly(adjoint):
    assert num_gradients(adjoint) == adjoint.work(13, 2).gradients


@pytest.mark.parametrize(
    "adjoint",
    [
        hg.Reversible(),
        hg.Reversible(share_gradient=False),
        hg.DrMAD(),
        hg.DrMAD(5),
        hg.DrMAD2(3),
        hg.DrMAD2(6, reverse_steps=4),
        hg.Waypoints(4),
        hg.Waypoints(4, undone_steps=2),
        hg.Waypoints(4, undone_steps=5),
        hg.Waypoints(4, placement=hg.EqualArcLength()),
    ],
    ids=name_of,
)
def test_products_along_a_path_of_their_own_have_a_gradient_each(adjoint):
    assert num_gradients(adjoint) == adjoint.work(13, 2).total


def test_forward_mode_in_groups_repeats_the_gradients():
    assert num_gradients(hg.ForwardMode(memory=100)) > 2 * hg.ForwardMode().work(13, 2).gradients


@pytest.mark.parametrize(
    ("adjoint", "work"),
    [
        (hg.Direct(), (True, 100, 100)),
        (hg.Reversible(), (True, 100, 100)),
        (hg.Reversible(share_gradient=False), (True, 200, 100)),
        (hg.Checkpointed(), (True, 200, 100)),
        (hg.Truncated(10), (False, 100, 10)),
        (hg.Truncated(200), (True, 100, 100)),
        (hg.ForwardMode(), (True, 100, 300)),
        (hg.Implicit(), (False, 100, None)),
        (hg.DrMAD(), (False, 100, 100)),
        (hg.DrMAD(10), (False, 100, 10)),
        (hg.DrMAD(hg.EarlyDisplacement(num_steps=20)), (False, 120, None)),
        (hg.DrMAD2(), (False, None, 100)),
        (hg.DrMAD2(30), (False, 130, 100)),
        (hg.DrMAD2(30, reverse_steps=10), (False, 110, 10)),
        (hg.DrMAD2(30, reverse_steps=hg.EarlyDisplacement()), (False, None, None)),
        (hg.Waypoints(5), (False, 100, 100)),
        (hg.Waypoints(5, undone_steps=10), (False, 140, 100)),
        (hg.Waypoints(5, undone_steps=1000), (False, 200, 100)),
        (hg.Waypoints(5, undone_steps=None), (False, None, 100)),
        (hg.Waypoints(5, placement=hg.EqualArcLength()), (False, 200, 100)),
        (hg.Waypoints(5, 10, hg.EqualArcLength()), (False, None, 100)),
    ],
    ids=lambda x: name_of(x) if isinstance(x, hg.Adjoint) else "",
)
def test_work_by_definition(adjoint, work):
    assert adjoint.work(100, 3) == work


def test_the_usual_adjoints_are_what_applies():
    momentum = usual_adjoints(hg.momentum(loss), 200, 2)
    assert momentum == (*ADJOINTS, hg.ForwardMode(), hg.Waypoints(16, undone_steps=None))
    assert usual_adjoints(hg.sgd(loss), 200, 33) == ADJOINTS
    assert usual_adjoints(hg.sgd(loss), 200, 32) == (*ADJOINTS, hg.ForwardMode())
    # The shortest runs have as many states as there are waypoints, or more.
    for num_steps, count in ((1, 2), (2, 3), (3, 3)):
        *_, waypoints = usual_adjoints(hg.momentum(loss), num_steps, 2)
        assert waypoints == hg.Waypoints(count, undone_steps=None)


@pytest.mark.slow
def test_approximations_are_timed_and_never_recommended():
    """Waypoints that a run of 8 steps has not enough states for."""
    adjoints = (hg.Waypoints(16), hg.DrMAD(40), hg.Direct())
    found = plan_of(60, adjoints=adjoints, memory=1e9, is_timed=True)
    assert all(row.seconds > 0 and row.why_not is None for row in found.rows)
    assert found.recommended == hg.Direct()


def test_a_plan_of_the_usual_adjoints():
    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
    found = plan_of(30, hparams=hparams, hparams_axes=None, adjoints=None, memory=1e9)
    assert [row.adjoint for row in found.rows] == [
        *ADJOINTS,
        hg.ForwardMode(),
        hg.Waypoints(7, undone_steps=None),
    ]
    assert [row.why_not for row in found.rows] == [None] * 6
    assert found.rows[-1].work == (False, None, 30)


def test_a_recommendation_repeats_what_is_missing():
    found = plan_of(adjoints=(hg.ForwardMode(),), memory=1e12, is_timed=False, **ONE_RATE)
    assert found.recommended == hg.ForwardMode()
    assert found.advice.endswith("the fastest that is exact (no gradient of params).")


def test_extrapolation():
    assert extrapolated([3.0], [7], 7) == 3.0
    assert extrapolated([1.5, 2.5], [10, 30], 1030) == pytest.approx(52.5)
    # Noise: the longer run was the faster.
    assert extrapolated([2.0, 1.0], [10, 30], 60) == pytest.approx(2.0)


def test_adjoints_are_named_without_their_defaults():
    assert name_of(hg.Implicit()) == "Implicit()"
    assert name_of(hg.Waypoints(5, undone_steps=None)) == "Waypoints(count=5, undone_steps=None)"


def test_bytes_are_written_in_three_digits():
    sizes = [0, 999, 1000, 12_345, 999_499, 999_600, 2_408_000_000, 5e13]
    want = ["0 bytes", "999 bytes", "1 kB", "12.3 kB", "999 kB", "1 MB", "2.41 GB", "50 TB"]
    assert [in_bytes(size) for size in sizes] == want


def test_the_plan_is_a_table(untimed):
    assert isinstance(untimed, Plan)
    lines = str(untimed).splitlines()
    assert lines[0] == "200 steps within 1 MB"
    assert lines[1].split() == [
        "adjoint",
        "exact",
        "memory",
        "gradients",
        "products",
        "seconds",
    ]
    assert lines[4].split()[:2] == ["Checkpointed(branching=2)", "yes"]
    assert "1,800" in lines[4]
    assert len(lines) == 2 + len(ADJOINTS) + 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"memory": 0}, ValueError, "memory is 0; it must be a positive number of bytes"),
        ({"memory": np.nan}, ValueError, "memory is nan"),
        ({"memory": "1 GB"}, ValueError, "memory is '1 GB'"),
        ({"adjoints": ()}, TypeError, r"adjoints is \(\); it must be a tuple of objects"),
        ({"adjoints": hg.Direct()}, TypeError, r"adjoints is Direct\(\); it must be a tuple"),
        ({"adjoints": (hg.Direct,)}, TypeError, "adjoints is .*; it must be a tuple"),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        ({"hparams": {"learning_rate": 0.1}}, ValueError, "hparams_axes .* is not a tree prefix"),
        ({"objective": lambda *_: jnp.ones(2)}, ValueError, r"objective returned .*\(2,\)"),
        (
            {"transition": hg.momentum(lambda *_: jnp.ones(2))},
            ValueError,
            r"loss returned float32 of shape \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        plan_of(**changes)


def test_traced_inputs_are_refused():
    with pytest.raises(TypeError, match="plan compiles and runs programs of its own and cannot"):
        jax.jit(lambda hparams: len(plan_of(hparams=hparams).rows))(hparams_of(200))
