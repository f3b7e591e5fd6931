"""One entry of the table of hook points, `hook_point_table.HOOK_POINTS`."""

import dataclasses
from typing import Literal

Stage = Literal["before", "block", "after"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HookPoint:
    """A hook point of every block, or of the model; `{i}` in its names is the block's number.

    Attributes:
        key: its name in the model's code.
        name: canonical.
        shape: of one token's value, in the letters of `model`.
        definition: what the value is.
        transformer_lens: its name in TransformerLens, or None.
        hugging_face: the module whose output it is (`...input`: whose input), or None.
        aliases: further names.
        stage: computed before the blocks, in each of them, or after them.
        when: attribute of `QwenConfig` that must be true, or false after `not `; empty: every model
            has it.
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
        """Whether it has one value for each key, so that its width depends on the prompt."""
        return "S" in self.shape.split()

    def names(self, layer: int | None = None) -> list[str]:
        """Return every name in a block (None: outside the blocks), the canonical one first."""
        given = (self.name, self.transformer_lens, self.hugging_face, *self.aliases)
        return [name.format(i=layer) for name in given if name is not None]
