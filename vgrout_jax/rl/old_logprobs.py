"""Where log pi_old comes from: which rollouts need it, and who has it already (docs/method.md section 7)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vgrout_jax.arms.base import Arm
from vgrout_jax.config import Config
from vgrout_jax.model import qwen3
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.scorer import Rows, Scorer
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import gate


@dataclasses.dataclass(frozen=True)
class OldLogprobs:
    """What is known of the policies of a run before any rollout is.

    Attributes:
        labels: those that can come out, of `Arm.labels`.
        probe_full: whether the probe reads the policy with both blocks; None where no probe is read.
        sampler_serves: whether the sampler's own log-probabilities stand for those of a pass.
        has_teacher: whether rows can come from a teacher, of whom the sampler has nothing to say.
    """

    labels: tuple[int, ...]
    probe_full: bool | None
    sampler_serves: bool
    has_teacher: bool

    def trains_as_sampled(self, batch: Batch, labels: Array) -> Bool[Array, "n"]:
        """Rows whose training policy is the one that sampled them, where the ratio is 1 by definition.

        Pinned clean, the quarantine never moves from its init, where its output is exactly 0: the policy with
        it and the one without are the same function, bit for bit.
        """
        if self.labels == (gate.CLEAN,):
            return jnp.ones_like(batch.quarantine_sampled)
        return batch.quarantine_sampled == gate.route_masks(labels)[0]

    def find(
        self,
        scorer: Scorer,
        state: TrainState,
        frozen: Frozen,
        rows: Rows,
        probed: tuple[Float[Array, "N T"], Bool[Array, "N"]] | None,
    ) -> tuple[Float[Array, "N T"], Bool[Array, "N"]]:
        """log pi_old where a row's ratio needs it, and whether a pass computed it.

        From pass 1 where that ran the policy that sampled, else from the sampler where its own serves, else anew.
        `probed`: log-probabilities of pass 1 and the rows that it ran, or None.
        """
        batch = rows.batch
        found, from_probe = jnp.zeros_like(batch.sampler_logprobs), jnp.zeros_like(rows.live)
        if probed is not None:
            found, from_probe = probed[0], (batch.quarantine_sampled == self.probe_full) & probed[1]
        anew = rows.live & ~self.trains_as_sampled(batch, rows.labels) & ~from_probe
        if self.sampler_serves:
            found = jnp.where((anew & ~batch.taught)[:, None], batch.sampler_logprobs, found)
            anew = anew & batch.taught
        if samplers := self.unread_samplers():
            found = jnp.where(anew[:, None], scorer.forward(state, frozen, rows, anew, samplers), found)
        return found, from_probe | anew

    def unread_samplers(self) -> tuple[bool, ...]:
        """The policies, by m, under which a forward pass has to read rows for their log pi_old; () for none."""
        if self.labels == (gate.CLEAN,):
            return ()
        if self.sampler_serves:  # but of the teacher's rows, which count as the full policy's
            return (True,) if gate.CLEAN in self.labels and self.has_teacher else ()
        if self.labels == (gate.MID,):
            return (False,)
        # A row without advantage trains the deployed policy, and the probe does not run it.
        return (True,) if self.probe_full is False else (False, True)


def make_old_logprobs(arm: Arm, config: Config, model: qwen3.Qwen3Config) -> OldLogprobs:
    """Of a run's arm and settings.

    The sampler serves where it samples at temperature 1, untruncated, in float32. In bfloat16 a pass rounds otherwise
    than the decode loop, which would be noise in every ratio.
    """
    rollout = config.rollout
    untruncated = rollout.temperature == 1.0 and rollout.top_k == 0 and rollout.top_p >= 1.0
    return OldLogprobs(
        labels=arm.labels,
        probe_full=config.gate.probe_policy == "full" if arm.source.reads_probe else None,
        sampler_serves=untruncated and model.dtype == jnp.float32,
        has_teacher=config.teacher.per_prompt > 0,
    )
