"""Trains with steps of many spellings, on one process or on several.

``python steps_run.py FOLDER``, or by torchrun: writes what each rank has to ``FOLDER``. The global
batch is the same for any number of processes, and its last one is short, so that results are too.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import fitkit
from fitkit import NNHandler, StepOutput

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(29, 4, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(3, (29,), generator=GENERATOR)
FSDP = "sharded: "
UNUSED = fitkit.DDP(find_unused_parameters=True)


class Net(nn.Module):
    """A body, a head and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.score(self.body(x))

    def score(self, hidden: Tensor) -> Tensor:
        """Class scores of what the body gives."""
        for block in self.blocks:
            hidden = block(hidden).tanh() + hidden
        return self.head(hidden) * self.scale


class Embeds(nn.Module):
    """Sparse gradients beside dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3, sparse=True)
        self.head = nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.head(self.table(x.abs().sum(1).long().clamp(max=6)))


class Margin(nn.Module):
    """A loss with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("offset", torch.full((), 0.1, dtype=torch.float64))

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy."""
        return functional.cross_entropy(scores * self.temperature.exp() + self.offset, targets)


def loss_of(scores: Tensor, batch: Any) -> Tensor:
    """The cross entropy."""
    return functional.cross_entropy(scores, batch[1])


def parts(handler: Any, batch: Any) -> Tensor:
    """Calls the parts of the model."""
    return loss_of(handler.model.score(handler.model.body(batch[0])), batch)


def direct(handler: Any, batch: Any) -> Tensor:
    """Uses parameters without any module's forward."""
    net = handler.module
    hidden = functional.linear(batch[0], net.body[0].weight, net.body[0].bias).tanh()
    return loss_of(net.score(hidden), batch) + 0.01 * net.head.weight.square().sum()


def several(handler: Any, batch: Any) -> Tensor:
    """Several forward passes."""
    noisy = handler.model(batch[0] * 1.1)
    clean = handler.model(batch[0])
    return loss_of(clean, batch) + (noisy - clean).square().mean()


def checkpointed(*, use_reentrant: bool) -> Callable[..., Tensor]:
    """Activation checkpointing."""

    def step(handler: Any, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        hidden = checkpoint(handler.model.body, x, use_reentrant=use_reentrant)
        scores: Any = checkpoint(handler.model.score, hidden, use_reentrant=use_reentrant)
        return loss_of(scores, batch)

    return step


def leaves_out(handler: Any, batch: Any) -> Tensor:
    """Uses the blocks in every second step only."""
    net, hidden = handler.model, handler.model.body(batch[0])
    if handler.state.global_step % 2:
        return loss_of(net.score(hidden), batch)
    return loss_of(net.head(hidden) * net.scale, batch)


def without_weight(handler: Any, batch: Any) -> StepOutput:
    """A loss that is NaN, and has no weight, for classes that are not there."""
    x, y = batch
    y = y.masked_fill(x[:, 0] < 0.3, -100)
    scores = handler.module(x)
    return StepOutput(functional.cross_entropy(scores, y), weight=(y != -100).sum())


def second_order(handler: Any, batch: Any) -> Tensor:
    """A penalty on the gradient."""
    x = batch[0].clone().requires_grad_()
    scores = handler.model(x)
    (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return loss_of(scores, batch) + slope.square().sum(1).mean()


@dataclass
class Case:
    """A step, and what it is run with."""

    step: Any
    net: Any = Net
    loss: Any = None
    strategy: Any = "auto"
    optimizer: Any = torch.optim.Adam
    fit: dict[str, Any] = field(default_factory=dict)
    callbacks: Any = ()
    more: Any = ()
    samples: int = len(X)


def closed_over() -> Case:
    """A step that uses a variable of the program's own."""
    torch.manual_seed(0)
    net = Net()
    return Case(lambda handler, batch: loss_of(net(batch[0]), batch), lambda: net)


def parameter_of_the_optimizer(kind: Any) -> Case:
    """A parameter that only the optimizer has."""
    extra = kind(torch.full((3,), 0.1, dtype=torch.float64))
    extra.requires_grad_()
    return Case(
        lambda handler, batch: loss_of(handler.model(batch[0]) + extra, batch), more=[extra]
    )


class Freezes(fitkit.Callback):
    """Freezes the body at first, and the head later."""

    def on_train_begin(self, logs: Any) -> None:
        """Freeze the body."""
        self.model.body.requires_grad_(False)

    def on_train_batch_begin(self, batch: int, logs: Any) -> None:
        """Exchange them."""
        if self.handler.state.global_step == 3:
            self.model.body.requires_grad_(True)
            self.model.head.requires_grad_(False)


class Own(fitkit.Callback):
    """Optimizers of its own, and steps that use them."""

    def __init__(self, how: str, cls: Any) -> None:
        self.how, self.cls = how, cls
        self.optimizers: dict[str, Any] = {}
        self.scaler = torch.amp.GradScaler("cpu")

    def prepare(self, net: Any) -> None:
        """Make the optimizers, of parameters that FSDP has sharded before."""
        adam, sgd = torch.optim.Adam, torch.optim.SGD
        everything = list(net.parameters())
        if self.how == "adversaries":
            self.rest = [*net.blocks.parameters(), *net.head.parameters(), net.scale]
            self.optimizers["body"] = adam(net.body.parameters(), lr=0.05)
            self.optimizers["head"] = sgd(self.rest, lr=0.05, momentum=0.9)
        elif self.how == "line_search":
            search = {"max_iter": 3, "line_search_fn": "strong_wolfe"}
            self.optimizers["all"] = torch.optim.LBFGS(everything, **search)
        elif self.how == "second_network":
            self.other = nn.Linear(3, 3, dtype=torch.float64)
            self.optimizers["all"] = sgd(self.other.parameters(), lr=0.1)
        else:
            self.optimizers["all"] = self.cls(everything, lr=0.05)

    def __call__(self, handler: Any, batch: Any) -> Any:
        """The step."""
        return getattr(self, self.how)(handler, batch)

    def one(self, handler: Any, batch: Any) -> StepOutput:
        """One backward pass, with clipping."""
        net = handler.module
        adam = self.optimizers["all"]
        adam.zero_grad()
        loss = loss_of(net.score(net.body(batch[0])), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        adam.step()
        return StepOutput(loss.detach(), backward=False)

    def adversaries(self, handler: Any, batch: Any) -> StepOutput:
        """Two optimizers and three backward passes, one of which also reaches the other part."""
        net = handler.model
        body, head = self.optimizers["body"], self.optimizers["head"]
        hidden = net.body(batch[0])
        head.zero_grad(set_to_none=False)
        loss_of(net.score(hidden.detach()), batch).backward()
        net.score(hidden.detach()).square().mean().mul(0.1).backward()
        nn.utils.clip_grad_norm_(self.rest, 0.5)
        head.step()
        body.zero_grad()
        loss = loss_of(net.score(hidden), batch)
        loss.backward()
        body.step()
        return StepOutput(loss.detach(), backward=False)

    def parts_of_blocks(self, handler: Any, batch: Any) -> StepOutput:
        """Calls modules of a block without the block."""
        adam = self.optimizers["all"]
        adam.zero_grad()
        loss = inside_blocks(handler, batch)
        loss.backward()
        adam.step()
        return StepOutput(loss.detach(), backward=False)

    def through_the_model(self, handler: Any, batch: Any) -> StepOutput:
        """Clears gradients, reads some and bounds weights through the model, in windows of two."""
        net = handler.model
        adam = self.optimizers["all"]
        if handler.state.global_step % 2 == 0:
            net.zero_grad()
        hidden = net.body(batch[0])
        loss = loss_of(net.score(hidden), batch)
        torch.autograd.grad(loss, [net.body[0].weight, hidden], retain_graph=True)
        torch.autograd.grad(loss, net.head.weight, retain_graph=True)
        loss.backward()
        adam.step()
        for parameter in net.parameters():
            parameter.data.clamp_(-0.3, 0.3)
        return StepOutput(loss.detach(), backward=False)

    def accumulates(self, handler: Any, batch: Any) -> StepOutput:
        """Gradients of three batches make a step."""
        adam = self.optimizers["all"]
        loss = loss_of(handler.model(batch[0]), batch)
        (loss / 3).backward()
        if handler.state.global_step % 3 == 2:
            adam.step()
            adam.zero_grad()
        return StepOutput(loss.detach(), backward=False)

    def line_search(self, handler: Any, batch: Any) -> StepOutput:
        """LBFGS, which evaluates the loss several times."""
        lbfgs = self.optimizers["all"]

        def closure() -> Tensor:
            lbfgs.zero_grad()
            loss = loss_of(handler.model(batch[0]), batch)
            loss.backward()
            return loss

        return StepOutput(lbfgs.step(closure).detach(), backward=False)

    def helps(self, handler: Any, batch: Any) -> Tensor:
        """A further backward pass before that of the loss, in windows."""
        (handler.model(batch[0]).square().mean() * 0.1).backward()
        return loss_of(handler.model(batch[0]), batch)

    def in_turn(self, handler: Any, batch: Any) -> Any:
        """The first epoch leaves the backward pass to fit."""
        if handler.state.epoch == 0:
            return loss_of(handler.model(batch[0]), batch)
        return self.one(handler, batch)

    def adapts(self, handler: Any, batch: Any) -> Tensor:
        """Trains a copy inside the step, on what this rank has: weights that decay to the same."""
        inner = copy.deepcopy(handler.module)
        sgd = torch.optim.SGD(inner.parameters(), lr=1.0)
        sum(p.square().sum() / 2 for p in inner.parameters()).backward()
        sgd.step()
        return loss_of(handler.model(batch[0]), batch) + inner(batch[0]).square().mean()

    def scaled(self, handler: Any, batch: Any) -> StepOutput:
        """A loss scaler of its own."""
        net = handler.model
        adam = self.optimizers["all"]
        scaler = self.scaler
        adam.zero_grad()
        loss = loss_of(net(batch[0]), batch)
        scaler.scale(loss).backward()
        scaler.unscale_(adam)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(adam)
        scaler.update()
        return StepOutput(loss.detach(), backward=False)

    def inside(self, handler: Any, batch: Any) -> StepOutput:
        """Reentrant checkpoints."""
        adam = self.optimizers["all"]
        adam.zero_grad()
        loss = checkpointed(use_reentrant=True)(handler, batch)
        loss.backward()
        adam.step()
        return StepOutput(loss.detach(), backward=False)


def own(how: str, cls: Any = torch.optim.Adam, **options: Any) -> Callable[[], Case]:
    """A step that runs backward passes and optimizers of its own."""
    return lambda: Case(Own(how, cls), **{"optimizer": None, **options})


CASES: dict[str, Callable[[], Case]] = {
    "model": lambda: Case(lambda handler, batch: loss_of(handler.model(batch[0]), batch)),
    "module": lambda: Case(lambda handler, batch: loss_of(handler.module(batch[0]), batch)),
    "parts": lambda: Case(parts),
    "closure": closed_over,
    "direct use of parameters": lambda: Case(direct),
    "several passes": lambda: Case(several),
    "checkpointing": lambda: Case(checkpointed(use_reentrant=False)),
    "reentrant checkpointing": lambda: Case(checkpointed(use_reentrant=True)),
    "second order": lambda: Case(second_order),
    "loss module": lambda: Case(None, loss=Margin),
    "loss module in a step": lambda: Case(
        lambda handler, batch: handler.parts.loss.function(handler.model(batch[0]), batch[1]),
        loss=Margin,
    ),
    "parameter of the optimizer alone": lambda: parameter_of_the_optimizer(nn.Parameter),
    "tensor of the optimizer alone": lambda: parameter_of_the_optimizer(Tensor.clone),
    "unused": lambda: Case(leaves_out, strategy=UNUSED),
    "unused in windows": lambda: Case(
        leaves_out, strategy=UNUSED, fit={"gradient_accumulation_steps": 3}
    ),
    "windows": lambda: Case(parts, fit={"gradient_accumulation_steps": 3}),
    "weights of zero": lambda: Case(without_weight),
    "weights of zero in windows": lambda: Case(
        without_weight, fit={"gradient_accumulation_steps": 2}
    ),
    "weights of zero, unused": lambda: Case(without_weight, strategy=UNUSED),
    "sparse": lambda: Case(without_weight, net=Embeds, optimizer=torch.optim.SGD),
    "bucket views": lambda: Case(
        without_weight,
        strategy=fitkit.DDP(gradient_as_bucket_view=True),
        fit={"gradient_accumulation_steps": 2},
    ),
    "static graph": lambda: Case(parts, strategy=fitkit.DDP(static_graph=True)),
    "static graph in windows": lambda: Case(
        parts, strategy=fitkit.DDP(static_graph=True), fit={"gradient_accumulation_steps": 3}
    ),
    "frozen and unfrozen": lambda: Case(parts, callbacks=[Freezes()]),
    "own backward with clipping": own("one"),
    "own backward, one rank without samples": own("one", samples=17),
    "own backward, sparse": own("accumulates", net=Embeds, cls=torch.optim.SGD),
    "adversaries": own("adversaries"),
    "own accumulation": own("accumulates"),
    "line search": own("line_search", samples=21),
    "own loss scaler": own("scaled"),
    "own backward, through the model": own("through_the_model"),
    "own reentrant checkpoints": own("inside"),
    "backward before that of the loss": own("helps", optimizer=torch.optim.Adam),
    "backward before that of the loss in windows": own(
        "helps", optimizer=torch.optim.SGD, fit={"gradient_accumulation_steps": 3}
    ),
    "own backward later": own("in_turn", optimizer=torch.optim.SGD),
    "copies that are trained inside": own("adapts", optimizer=torch.optim.Adam),
}


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Add to what comes in."""
        return x + self.outer(self.inner(x).tanh())


class Deep(Net):
    """With blocks that have parts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()]).double()


def inside_blocks(handler: Any, batch: Any) -> Tensor:
    """Calls modules of a block without the block, and uses a weight after the model was called."""
    net = handler.module
    hidden = net.body(batch[0])
    for block in net.blocks:
        hidden = hidden + block.outer(block.inner(hidden).sigmoid())
    scores = net.head(hidden)
    return loss_of(scores, batch) + 0.01 * net.head.weight.square().sum()


def evaluates_parts(handler: Any, batch: Any) -> StepOutput:
    """An evaluation step that calls parts of the model."""
    scores = handler.module.score(handler.module.body(batch[0])) * handler.module.scale
    return StepOutput(loss_of(scores, batch), scores, batch[1])


SHARDED: dict[str, Callable[[], Case]] = {
    **{
        name: CASES[name]
        for name in (
            "model",
            "frozen and unfrozen",
            "parts",
            "direct use of parameters",
            "several passes",
            "checkpointing",
            "loss module",
            "loss module in a step",
            "windows",
            "weights of zero",
            "own backward with clipping",
            "own backward, one rank without samples",
            "adversaries",
            "own accumulation",
            "own backward, through the model",
            "backward before that of the loss",
            "own backward later",
        )
    },
    "inside blocks": lambda: Case(inside_blocks, net=Deep),
    "own backward inside blocks": own("parts_of_blocks", net=Deep),
}


class Refused(Own):
    """Steps that ranks cannot take as one."""

    def second_network(self, handler: Any, batch: Any) -> StepOutput:
        """Trains a network that is no part of the model."""
        sgd = self.optimizers["all"]
        loss = loss_of(self.other(handler.model(batch[0])), batch)
        loss.backward()
        sgd.step()
        return StepOutput(loss.detach(), backward=False)

    def assigned(self, handler: Any, batch: Any) -> StepOutput:
        """Assigns gradients that no backward pass has added."""
        parameters = list(handler.model.parameters())
        sgd = self.optimizers["all"]
        loss = loss_of(handler.model(batch[0]), batch)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        sgd.step()
        return StepOutput(loss.detach(), backward=False)

    def assigned_before(self, handler: Any, batch: Any) -> Tensor:
        """Assigns gradients that no backward pass has added, and leaves the loss to fit."""
        net = handler.model
        parameters = list(net.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss_of(net(batch[0]), batch), parameters), strict=True
        ):
            parameter.grad = gradient
        return loss_of(net(batch[0]), batch)

    def by_hand(self, handler: Any, batch: Any) -> StepOutput:
        """Changes weights by gradients that no backward pass has added, from the third step on."""
        if handler.state.global_step < 2:
            return self.one(handler, batch)
        parameters = list(handler.model.parameters())
        loss = loss_of(handler.model(batch[0]), batch)
        with torch.no_grad():
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter -= 0.1 * gradient
        return StepOutput(loss.detach(), backward=False)

    def skipped(self, handler: Any, batch: Any) -> StepOutput | None:
        """Skips a batch on one rank."""
        return None if handler.world.rank == 1 else self.one(handler, batch)

    def steps_alone(self, handler: Any, batch: Any) -> StepOutput:
        """Steps an optimizer on one rank."""
        adam = self.optimizers["all"]
        adam.zero_grad()
        loss = loss_of(handler.model(batch[0]), batch)
        loss.backward()
        if handler.world.rank == 1 or handler.state.global_step == 0:
            adam.step()
        return StepOutput(loss.detach(), backward=False)

    def leaves_to_fit(self, handler: Any, batch: Any) -> Any:
        """Leaves the backward pass to fit on one rank, without one of its own on the other."""
        loss = loss_of(handler.model(batch[0]), batch)
        return loss if handler.world.rank else StepOutput(loss.detach(), backward=False)

    def both(self, handler: Any, batch: Any) -> Tensor:
        """Calls blocks, and modules inside them."""
        return inside_blocks(handler, batch) + handler.model(batch[0]).square().mean()

    def unused_on_one(self, handler: Any, batch: Any) -> Tensor:
        """Uses the head on one rank only."""
        hidden = handler.model.body(batch[0])
        return loss_of(handler.model.score(hidden) if handler.world.rank else hidden, batch)


def refused(how: str, **options: Any) -> Callable[[], Case]:
    """A step that raises on all ranks."""
    return lambda: Case(Refused(how, torch.optim.Adam), **{"optimizer": None, **options})


REFUSED: dict[str, Callable[[], Case]] = {
    "second network": refused("second_network"),
    "assigned gradients": refused("assigned"),
    "assigned gradients before the loss": refused("assigned_before", optimizer=torch.optim.SGD),
    "weights changed by hand": refused("by_hand"),
    "skipped on one rank": refused("skipped"),
    "an optimizer step on one rank": refused("steps_alone"),
    "a backward pass for fit on one rank": refused("leaves_to_fit", optimizer=torch.optim.SGD),
    "both a block and its parts": refused("both", net=Deep, optimizer=torch.optim.SGD),
    "unused on one rank": refused("unused_on_one", optimizer=torch.optim.SGD),
}


def evaluated(handler: NNHandler, case: Case) -> list[float]:
    """What a step of parts gives in evaluation and prediction."""
    if case.step is None or not hasattr(handler.module, "score"):
        return []
    handler.set_predict_step(lambda handler, x: handler.module.body(x[0] if type(x) is list else x))
    hidden = handler.predict(X, batch_size=4)
    return [handler.evaluate((X, Y), batch_size=8)["loss"], float(hidden.square().sum())]


def run(name: str) -> dict[str, Any]:
    """Train on one case."""
    is_sharded, name = name.startswith(FSDP), name.removeprefix(FSDP)
    case = {**CASES, **SHARDED, **REFUSED}[name]()
    torch.manual_seed(0)
    strategy = "fsdp" if is_sharded else case.strategy
    handler = NNHandler(case.net(), "cpu", seed=0, strategy=strategy)
    loss = None if case.loss is None else case.loss()
    if case.optimizer is not None:
        more = [*case.more, *(() if loss is None else loss.parameters())]
        handler.set_optimizer(case.optimizer, lr=0.05, params=lambda m: [*m.parameters(), *more])
    if loss is not None:
        handler.set_loss_fn(loss)
    if isinstance(case.step, Own):
        case.step.prepare(handler.module)
    if case.step is not None:
        handler.set_train_step(case.step, evaluation_step=evaluates_parts)
    handler.set_train_loader((X[: case.samples], Y[: case.samples]), global_batch_size=8)
    callbacks = list(case.callbacks)
    history = handler.fit(epochs=2, progress_bar=False, callbacks=callbacks, **case.fit).history
    weights = list(handler.get_state_dict()["model_state_dict"].values())
    weights += [p.detach() for p in case.more] + ([] if loss is None else list(loss.parameters()))
    whole = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]
    return {
        "weights": torch.cat([w.detach().flatten() for w in whole]).tolist(),
        "loss": [*history["loss"], *evaluated(handler, case)],
        "counts": [handler.state.optimizer_steps, handler.state.samples_seen],
    }


def main() -> None:
    """Run all cases, and write their results."""
    torch.set_num_threads(1)
    world = NNHandler(nn.Linear(1, 1), "cpu").world
    results = {}
    for name in sys.argv[2:] or [*CASES, *(FSDP + name for name in SHARDED)]:
        try:
            results[name] = run(name)
            print(name, flush=True)
        except Exception as error:  # noqa: BLE001  tests look at it
            notes = getattr(error, "__notes__", [])
            results[name] = {"error": type(error).__name__, "text": "; ".join([str(error), *notes])}
            break  # ranks cannot communicate any more
    rank = "one" if world.size == 1 else f"rank{world.rank}"
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
