"""One entry of the table of hook points, `hook_point_table.HOOK_POINTS`."""

import dataclasses
from typing import Literal

Stage = Literal["before", "block", "after"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HookPoint:
    """A hook point of every block, or of the model; `{i}` in its names is the block's number.

    Attributes:
        key: name in the model's code.
        name: canonical name.
        shape: shape of one token's value, in the dimension letters of `model`.
        definition: description of the value.
        transformer_lens: name in TransformerLens; None if it has none.
        hugging_face: name of the module whose output the value is, or with `.input` at the end,
            whose input; None if there is no such module.
        aliases: further names.
        stage: whether the value is computed before the blocks, in each block, or after the blocks.
        when: attribute of `QwenConfig` that must be true, or after `not `, false; empty: all models
            have the hook point.
    """

    key: str
    name: str
    shape: str
    definition: str
    transformer_lens: str | None = None
    hugging_face: str | None = None
    aliases: tuple[str, ...] = ()
    stage: Stage = "block"
    when: str = ""

    def is_in(self, config: object) -> bool:
        """Return whether a model with this `QwenConfig` has the hook point."""
        wanted, name = not self.when.startswith("not "), self.when.removeprefix("not ")
        return not name or bool(getattr(config, name)) == wanted

    @property
    def per_key(self) -> bool:
        """Whether there is one number for each key, so that the width depends on the prompt."""
        return "S" in self.shape.split()

    def names(self, layer: int | None = None) -> list[str]:
        """Return every name in a block (None: outside the blocks), the canonical one first."""
        given = (self.name, self.transformer_lens, self.hugging_face, *self.aliases)
        return [name.format(i=layer) for name in given if name is not None]
