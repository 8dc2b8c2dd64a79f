"""What a training yields."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Step:
    """An optimizer step was done, and it was not the last of its epoch.

    Attributes:
        epoch: Number of epochs done.
        step: Number of optimizer steps done.
    """

    epoch: int
    step: int


@attrs.frozen(kw_only=True)
class EpochMetrics:
    """An epoch was done.

    Attributes:
        epoch: Number of epochs done.
        step: Number of optimizer steps done.
        loss: Mean training loss of the epoch, skipped batches left out.
        valid_loss: Validation loss of the weights that will be used, at epochs that validate.
        valid_loss_unweighted: The same without ``train.variable_weights``, where these are given.
        learning_rate: Learning rate of the last step.
        grad_norm: Norm of the gradients at the last step, before they were clipped.
        skipped: Number of batches of this epoch that were skipped.
        steps_per_second: Optimizer steps per second in this epoch, validation left out.
        utilization: Share of that time in which the loop did not wait for data.
    """

    epoch: int
    step: int
    loss: float
    valid_loss: float | None
    valid_loss_unweighted: float | None = None
    learning_rate: float
    grad_norm: float
    skipped: int
    steps_per_second: float
    utilization: float


@attrs.frozen(kw_only=True)
class SkippedBatch:
    """A batch was skipped, because its loss or gradients were not finite.

    Attributes:
        epoch: Number of epochs done.
        step: The optimizer step that it was skipped at.
        batch: Its number in the epoch, from 0.
        loss: Its loss.
        grad_norm: Norm of its gradients.
        levels: Diffusion times of the windows whose loss is not finite, or of all if each is.
        summary: Minimum, median and maximum of the finite values of ``input``, ``noised``,
            ``output`` and ``loss`` (one per window), and how many were not finite. The network is
            evaluated for it once more: on a GPU with the weights of up to two steps later.
    """

    epoch: int
    step: int
    batch: int
    loss: float
    grad_norm: float
    levels: list[float]
    summary: dict[str, dict[str, float]]


@attrs.frozen(kw_only=True)
class LossSpike:
    """The loss rose well above its running median; the training cannot just go on.

    Attributes:
        epoch: Number of epochs done.
        step: Number of optimizer steps done.
        since: The state after this many steps, and before, is one to go back to.
        loss: Mean loss of the last steps.
        median: Running median of the losses before them.
    """

    epoch: int
    step: int
    since: int
    loss: float
    median: float


Event = Step | EpochMetrics | SkippedBatch | LossSpike
