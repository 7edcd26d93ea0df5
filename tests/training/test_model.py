"""Training: members apart, Lightning's own bookkeeping, what is refused."""

import functools

import lightning as L
import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from kgon.callbacks import Checkpoints, LLCEstimates, Losses, Snapshots
from kgon.data import SingleFeature, Sparse
from kgon.llc.verdict import REASONS
from kgon.theory.loss import DirectLoss, EmpiricalLoss, population_loss
from kgon.training.checkpoints import EndedEarly
from kgon.training.datamodule import EnsembleData
from kgon.training.fit import train
from kgon.training.init import KGon, Normal
from kgon.training.model import TMS
from kgon.training.steps import check_members_are_independent

SGD = functools.partial(torch.optim.SGD, lr=0.05)


def fit(
    tmp_path,
    members=(0, 1, 2),
    optimizer=SGD,
    scheduler=None,
    callbacks=(),
    max_steps=60,
    distribution=None,
    stops=(20, 60),
    init=None,
    batch_size=4,
    block=7,
    **trainer,
):
    distribution = distribution or SingleFeature(5)
    model = TMS(
        distribution.n_features, 2, members, 0, init or Normal(0.7, 0.5), optimizer, scheduler
    )
    data = EnsembleData(distribution, 40, batch_size, 0, members, stops, block, torch.float64)
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **trainer,
    )
    train(model, data, trainer, tmp_path)
    return model, data, trainer


def by_hand(member, optimizer, scheduler=None, max_steps=60):
    """One model, one minibatch at a time, autograd: the definition of what training is."""
    model = TMS(5, 2, [member], 0, Normal(0.7, 0.5), optimizer)
    data = EnsembleData(SingleFeature(5), 40, 4, 0, [member], [max_steps], 7, torch.float64)
    batches = data.minibatches(0, max_steps)
    steps = optimizer([model.W, model.b])
    schedule = scheduler(steps) if scheduler else None
    for t in range(max_steps):
        steps.zero_grad()
        x = batches.step(t)
        (x - (x @ model.W.mT @ model.W + model.b[:, None]).relu()).square().sum(
            -1
        ).mean().backward()
        steps.step()
        if schedule:
            schedule.step()
    return model


COSINE = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=60)
EXPONENTIAL = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        functools.partial(torch.optim.Adam, lr=0.02),
        functools.partial(torch.optim.AdamW, lr=0.02),
        functools.partial(torch.optim.RMSprop, lr=0.01),
    ],
)
@pytest.mark.parametrize("scheduler", [None, COSINE, EXPONENTIAL])
def test_training_an_ensemble_is_training_each_member_by_hand(tmp_path, optimizer, scheduler):
    model, _, _ = fit(tmp_path, optimizer=optimizer, scheduler=scheduler)
    for i in range(3):
        alone = by_hand(i, optimizer, scheduler)
        torch.testing.assert_close(model.W[i], alone.W[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(model.b[i], alone.b[0], rtol=1e-10, atol=1e-11)


def _sequence(optimizer):
    parts = [schedulers.ConstantLR(optimizer, 0.5, 10), schedulers.ExponentialLR(optimizer, 0.97)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[25])


def _chain(optimizer):
    parts = [schedulers.ConstantLR(optimizer, 0.5, 10), schedulers.ExponentialLR(optimizer, 0.97)]
    return schedulers.ChainedScheduler(parts, optimizer)


SCHEDULERS = {
    "LambdaLR": functools.partial(schedulers.LambdaLR, lr_lambda=lambda t: 1 / (1 + t)),
    "MultiplicativeLR": functools.partial(
        schedulers.MultiplicativeLR, lr_lambda=lambda t: 1 - 1 / (9 + t)
    ),
    "StepLR": functools.partial(schedulers.StepLR, step_size=9),
    "MultiStepLR": functools.partial(schedulers.MultiStepLR, milestones=[9, 33]),
    "ConstantLR": functools.partial(schedulers.ConstantLR, factor=0.5, total_iters=17),
    "LinearLR": functools.partial(schedulers.LinearLR, total_iters=40),
    "ExponentialLR": EXPONENTIAL,
    "SequentialLR": _sequence,
    "PolynomialLR": functools.partial(schedulers.PolynomialLR, total_iters=50, power=2.0),
    "CosineAnnealingLR": COSINE,
    "ChainedScheduler": _chain,
    "CyclicLR": functools.partial(schedulers.CyclicLR, base_lr=0.01, max_lr=0.05, step_size_up=13),
    "CosineAnnealingWarmRestarts": functools.partial(
        schedulers.CosineAnnealingWarmRestarts, T_0=13
    ),
    "OneCycleLR": functools.partial(schedulers.OneCycleLR, max_lr=0.05, total_steps=61),
}


def test_every_scheduler_of_torch_is_tested_or_refused():
    known = {
        name
        for name, each in vars(schedulers).items()
        if isinstance(each, type) and issubclass(each, schedulers.LRScheduler)
    }
    assert known - {"LRScheduler", "_LRScheduler", "ReduceLROnPlateau"} == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        functools.partial(torch.optim.Adam, lr=0.02),
    ],
)
def test_every_scheduler_is_followed_however_often_one_looks(tmp_path, optimizer, scheduler):
    alone = by_hand(1, optimizer, scheduler)
    for stops, block in (((60,), 500), ((3, 20, 21, 60), 7), ((60,), 1)):
        model, _, _ = fit(
            tmp_path, optimizer=optimizer, scheduler=scheduler, stops=stops, block=block
        )
        torch.testing.assert_close(model.W[1], alone.W[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(model.b[1], alone.b[0], rtol=1e-10, atol=1e-11)


def test_the_settings_of_each_param_group_are_followed(tmp_path):
    def two_rates(parameters):
        return torch.optim.SGD(
            [{"params": [p], "lr": 0.05 / (5 * i + 1)} for i, p in enumerate(parameters)]
        )

    for scheduler in (None, EXPONENTIAL):
        model, _, _ = fit(tmp_path, optimizer=two_rates, scheduler=scheduler)
        alone = by_hand(1, two_rates, scheduler)
        torch.testing.assert_close(model.W[1], alone.W[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(model.b[1], alone.b[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("distribution", [SingleFeature(5), Sparse(5, 0.5)])
@pytest.mark.parametrize("optimizer", [SGD, functools.partial(torch.optim.Adam, lr=0.02)])
def test_full_batches_are_gradient_descent_on_the_data_set(tmp_path, distribution, optimizer):
    model, data, _ = fit(
        tmp_path, distribution=distribution, batch_size="full", optimizer=optimizer
    )
    alone = TMS(5, 2, [0, 1, 2], 0, Normal(0.7, 0.5), optimizer)
    steps = optimizer([alone.W, alone.b])
    for _ in range(60):
        steps.zero_grad()
        DirectLoss(data.x)(alone.W, alone.b).sum().backward()
        steps.step()
    torch.testing.assert_close(model.W, alone.W, rtol=1e-9, atol=1e-10)


def test_a_member_is_bitwise_the_same_alone_and_in_company(tmp_path):
    together, _, _ = fit(tmp_path, members=(0, 7, 3))
    alone, _, _ = fit(tmp_path, members=(7,))
    assert torch.equal(together.W[1], alone.W[0]) and torch.equal(together.b[1], alone.b[0])


def test_global_step_counts_optimizer_steps_and_checkpoints_follow_it(tmp_path):
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1
    )
    _, _, trainer = fit(tmp_path, callbacks=[checkpoint], stops=(20, 40, 60))
    assert trainer.global_step == 60
    assert {p.name for p in tmp_path.glob("*.ckpt")} == {
        "step=20.ckpt",
        "step=40.ckpt",
        "step=60.ckpt",
    }


@pytest.mark.parametrize("optimizer", [SGD, functools.partial(torch.optim.Adam, lr=0.02)])
def test_a_run_resumed_in_the_middle_ends_bitwise_the_same(tmp_path, optimizer):
    def once(folder, *others):
        steps = (0, 10, 20, 40, 60)
        checkpoint = Checkpoints(str(folder / "checkpoints"), every_seconds=1e-9)
        return fit(
            folder,
            optimizer=optimizer,
            scheduler=COSINE,
            callbacks=[Losses(steps), Snapshots(steps), checkpoint, *others],
            stops=(10, 20, 40, 60),
        )[0]

    class Fault(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step >= 40:
                raise RuntimeError("a fault")

    whole = once(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="a fault"):
        once(tmp_path / "parts", Fault())
    resumed = once(tmp_path / "parts")
    assert torch.equal(whole.W, resumed.W) and torch.equal(whole.b, resumed.b)
    for table in ("loss", "weights"):
        assert torch.equal(whole.history.steps(table), resumed.history.steps(table))
        for name, column in whole.history.columns(table).items():
            assert torch.equal(column, resumed.history.column(table, name))


class _StopsAt(L.Callback):
    """Ends training at the block that ends at a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize(
    ("limit", "ends"),
    [
        # Blocks of at most 7 steps end at 7, 14, 20, 27, ..., 55, 60.
        (lambda: {"limit_train_batches": 4}, [27, 55]),
        (lambda: {"overfit_batches": 4}, [27, 55]),
        (lambda: {"callbacks": [_StopsAt(14)]}, [14]),
        (lambda: {"max_time": {"seconds": 0}}, [0, 0]),
    ],
)
def test_training_that_ends_early_says_where_and_goes_on_from_there(tmp_path, limit, ends):
    def once(folder, callbacks=(), **trainer):
        checkpoint = Checkpoints(str(folder / "checkpoints"), every_seconds=1e9)
        own = [Losses((0, 20, 60)), *callbacks, checkpoint]
        return fit(folder, scheduler=COSINE, callbacks=own, **trainer)[0]

    whole = once(tmp_path / "whole")
    for end in ends:
        with pytest.raises(EndedEarly, match=f"at step {end} of 60; the same command"):
            once(tmp_path / "parts", **limit())
    resumed = once(tmp_path / "parts", **(limit() if ends[-1] else {}))
    assert torch.equal(whole.W, resumed.W) and torch.equal(whole.b, resumed.b)
    loss = [model.history.column("loss", "loss") for model in (whole, resumed)]
    assert torch.equal(*loss)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    folder = str(tmp_path / "checkpoints")
    fit(tmp_path, callbacks=[Checkpoints(folder, 1.0)], max_steps=20)
    with pytest.raises(RuntimeError, match="size mismatch for W"):
        fit(tmp_path, members=(0, 1), callbacks=[Checkpoints(folder, 1.0)])


def estimates(steps):
    from devinterp.optim import SGMCMC

    return LLCEstimates(
        steps, nbeta=None, localization=1.0, n_chains=2, target=0.1, budget=1000,
        sampler=SGMCMC.sgld, lr=1e-3, n_draws=20, n_burnin=5,
    )  # fmt: skip


def test_estimating_llcs_leaves_training_bitwise_the_same(tmp_path):
    plain, _, _ = fit(tmp_path)
    watched, _, _ = fit(tmp_path, callbacks=[estimates((0, 20, 60))])
    assert torch.equal(plain.W, watched.W) and torch.equal(plain.b, watched.b)
    assert watched.history.steps("llc").tolist() == [0, 20, 60]


def test_a_members_llc_is_the_same_in_any_company(tmp_path):
    together, _, _ = fit(tmp_path, members=(0, 7), callbacks=[estimates((20,))])
    alone, _, _ = fit(tmp_path, members=(7,), callbacks=[estimates((20,))])
    torch.testing.assert_close(
        together.history.column("llc", "mean")[:, 1:], alone.history.column("llc", "mean")
    )


@pytest.mark.parametrize("distribution", [SingleFeature(5), Sparse(5, 0.5)])
def test_recorded_losses_are_those_of_the_recorded_weights(tmp_path, distribution):
    model, data, _ = fit(
        tmp_path, distribution=distribution, callbacks=[Losses((0, 20, 60)), Snapshots((0, 20, 60))]
    )
    W, b = (model.history.column("weights", name) for name in ("W", "b"))
    direct = DirectLoss(data.x)(W, b)
    torch.testing.assert_close(model.history.column("loss", "train_loss"), direct)
    if isinstance(distribution, SingleFeature):
        torch.testing.assert_close(model.history.column("loss", "loss"), population_loss(W, b))
        torch.testing.assert_close(EmpiricalLoss(data.x)(W, b), direct)


class _OneFarOff:
    """A start whose second member overflows at once."""

    def __call__(self, keys, n_hidden, n_features):
        W, b = Normal(0.7, 0.5)(keys, n_hidden, n_features)
        W[1] *= 1e4
        return W, b


def test_a_diverged_member_stops_and_the_others_do_not_notice(tmp_path):
    callbacks = [Losses((0, 20, 60)), estimates((60,))]
    model, _, _ = fit(tmp_path, init=_OneFarOff(), callbacks=callbacks)
    plain, _, _ = fit(tmp_path)
    assert (model.diverged_at >= 0).tolist() == [False, True, False]
    assert torch.equal(model.W[[0, 2]], plain.W[[0, 2]])
    reasons = [list(REASONS)[code] for code in model.history.column("llc", "reason")[-1]]
    assert reasons[1] == "draws not finite" != reasons[0]


def test_a_job_whose_members_all_diverge_fails(tmp_path):
    with pytest.raises(FloatingPointError, match="all 3 members diverged"):
        fit(tmp_path, init=Normal(1e4, 1.0))


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.LBFGS, lr=0.1),
        functools.partial(torch.optim.Adafactor, lr=0.1),
    ],
)
def test_optimizers_that_couple_members_are_refused(optimizer):
    with pytest.raises(ValueError, match="couples the members"):
        check_members_are_independent(optimizer, None)


def test_schedulers_that_couple_members_are_refused():
    with pytest.raises(ValueError, match="couples the members"):
        check_members_are_independent(SGD, torch.optim.lr_scheduler.ReduceLROnPlateau)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0.*couple"),
        ({"devices": 2}, "trainer.devices=2.*one device"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        ({"fast_dev_run": True}, "fast_dev_run.*trainer=debug"),
    ],
)
def test_trainers_that_do_not_fit_an_ensemble_are_refused(tmp_path, trainer, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, **trainer)


@pytest.mark.parametrize(
    ("start", "n_hidden", "message"),
    [
        (lambda: KGon("4", -0.1, 1.0), 2, "init.noise"),
        (lambda: Normal(1.0, -1.0), 2, "init.bias_std"),
        (lambda: KGon("4", 0.1, 1.0), 3, "init.label: no critical point '4'.*init=normal"),
        (lambda: KGon("7", 0.1, 1.0), 2, "7"),
        (lambda: Normal(1.0, 1.0), 0, "n_hidden must be at least 1, got 0"),
    ],
)
def test_bad_starts_are_refused(start, n_hidden, message):
    with pytest.raises(ValueError, match=message):
        TMS(5, n_hidden, [0], 0, start(), SGD)


@pytest.mark.parametrize(
    ("distribution", "steps"), [(Sparse(5, 0.5), [60]), (SingleFeature(5), [20, 60])]
)
def test_slow_estimates_are_made_at_the_last_step_only(tmp_path, distribution, steps):
    # Data with several active features have no closed loss.
    model, *_ = fit(tmp_path, callbacks=[estimates([20, 60])], distribution=distribution)
    assert model.history.steps("llc").tolist() == steps
