"""The grid of merged visual tokens of one video, and the patches it comes from."""

from dataclasses import dataclass

from schemas.errors import GridMismatchError


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """``frames`` token frames (temporal patches) of ``height x width`` visual tokens.

    This is the grid after the spatial merge: ``video_grid_thw`` of transformers with height and
    width divided by ``spatial_merge_size``. Tokens are row-major: t, then y, then x.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise GridMismatchError(
                f"a token grid needs at least one token on each side, got {self}"
            )

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        return self.frames * self.tokens_per_frame

    def check(self, num_tokens: int) -> None:
        """Raise GridMismatchError unless there are exactly this grid's tokens."""
        if num_tokens != self.num_tokens:
            raise GridMismatchError(
                f"found {num_tokens} visual tokens, but the grid {self} holds {self.num_tokens}. "
                "Pass grid_thw divided by spatial_merge_size."
            )

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """How the encoder cuts frames: square patches, joined in time, then merged in space."""

    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int

    @property
    def token_side(self) -> int:
        """Pixels on each side of one visual token: heights and widths are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patches_per_token(self) -> int:
        return self.spatial_merge_size**2

    def token_grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The grid of a resized video; an odd last frame fills its temporal patch by repetition."""
        return TokenGrid(
            frames=-(-num_frames // self.temporal_patch_size),
            height=height // self.token_side,
            width=width // self.token_side,
        )
