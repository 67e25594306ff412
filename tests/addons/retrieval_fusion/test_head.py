"""The layer is a transformer encoder layer read at its query; identity at first, masked truly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionLayer, FusionSettings
from clipkit.contracts import Batch, Outputs
from clipkit.errors import ConfigError

N, K, D = 5, 4, 16


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=g, dtype=dtype), dim=-1)


def layer(trained: bool = True, dtype: torch.dtype = torch.float32) -> FusionLayer:
    """As training leaves one: nothing of it is zero."""
    torch.manual_seed(1)
    found = FusionLayer(D, 4, 2.0)
    if trained:
        for p in found.parameters():
            nn.init.normal_(p, std=0.3)
    return found.to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries with 4, 2, 1, 0 and 3 neighbours."""
    mask = torch.arange(K) < torch.tensor([4, 2, 1, 0, 3])[:, None]
    neighbours = unit(N, K, D, seed=2, dtype=dtype) * mask[..., None]
    return unit(N, D, seed=3, dtype=dtype), neighbours, mask


def reference(own: FusionLayer) -> nn.TransformerEncoderLayer:
    """torch's layer with the same weights, all tokens computed."""
    other = nn.TransformerEncoderLayer(
        D, 4, 2 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    attention = other.self_attn
    copied = {
        attention.in_proj_weight: torch.cat([own.query.weight, own.key_value.weight]),
        attention.in_proj_bias: torch.cat([own.query.bias, own.key_value.bias]),
        attention.out_proj.weight: own.attention_out.weight,
        attention.out_proj.bias: own.attention_out.bias,
        other.linear1.weight: own.mlp_in.weight,
        other.linear1.bias: own.mlp_in.bias,
        other.linear2.weight: own.mlp_out.weight,
        other.linear2.bias: own.mlp_out.bias,
        other.norm1.weight: own.attention_norm.weight,
        other.norm1.bias: own.attention_norm.bias,
        other.norm2.weight: own.mlp_norm.weight,
        other.norm2.bias: own.mlp_norm.bias,
    }
    with torch.no_grad():
        for parameter, value in copied.items():
            parameter.copy_(value)
    return other.train()  # its other path, in eval mode, is not the plain formula


def test_it_is_torchs_encoder_layer_read_at_the_query() -> None:
    own = layer(dtype=torch.float64)
    query, neighbours, mask = inputs(torch.float64)
    tokens = torch.cat([query[:, None], neighbours], dim=1)
    hidden = F.pad(~mask, (1, 0), value=False)
    wanted = F.normalize(reference(own)(tokens, src_key_padding_mask=hidden)[:, 0], dim=-1)
    wanted[3] = query[3]  # has no neighbour
    torch.testing.assert_close(own(query, neighbours, mask), wanted, rtol=0, atol=1e-12)


def test_a_new_layer_leaves_every_bit_and_has_a_gradient() -> None:
    own, (query, neighbours, mask) = layer(trained=False), inputs()
    refined = own(query, neighbours, mask)
    assert torch.equal(refined, query)
    (refined * unit(N, D, seed=4)).sum().backward()
    assert float(own.attention_out.weight.grad.abs().max()) > 0
    assert float(own.mlp_out.weight.grad.abs().max()) > 0


def test_it_is_unit_and_does_something() -> None:
    own, (query, neighbours, mask) = layer(), inputs()
    refined = own(query, neighbours, mask)
    torch.testing.assert_close(refined.norm(dim=-1), torch.ones(N))
    assert bool(((refined - query).norm(dim=-1)[mask.any(dim=1)] > 0.1).all())


def test_the_order_of_neighbours_says_nothing() -> None:
    own, (query, neighbours, mask) = layer(dtype=torch.float64), inputs(torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    other = own(query, neighbours[:, order], mask[:, order])
    torch.testing.assert_close(own(query, neighbours, mask), other, rtol=0, atol=1e-12)


def test_masking_all_is_no_retrieval_and_zero_vectors_are_not() -> None:
    own, (query, neighbours, mask) = layer(), inputs()
    nothing = torch.zeros_like(mask)
    assert torch.equal(own(query, neighbours, nothing), query)
    assert torch.equal(own(query, neighbours[:, :0], mask[:, :0]), query)  # k = 0
    zeros = own(query, torch.zeros_like(neighbours), ~nothing)
    assert bool(((zeros - query).norm(dim=-1) > 0.1).all())


def test_a_masked_neighbour_weighs_nothing_at_any_size() -> None:
    own, (query, neighbours, mask) = layer(dtype=torch.float64), inputs(torch.float64)
    wild = torch.where(mask[..., None], neighbours, 1e4 * unit(N, K, D, dtype=torch.float64))
    wild.requires_grad_()
    refined = own(query, wild, mask)
    torch.testing.assert_close(refined, own(query, neighbours, mask), rtol=0, atol=0)
    refined.square().mul(unit(N, D, seed=5, dtype=torch.float64)).sum().backward()
    assert not wild.grad[~mask].any() and wild.grad[mask].any(dim=-1).all()


def test_the_residual_stays_exact_under_bfloat16() -> None:
    query, neighbours, mask = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(trained=False)(query, neighbours.half(), mask), query)
        mixed = layer()(query, neighbours.half(), mask)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, layer()(query, neighbours, mask), rtol=0, atol=0.05)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(N))
    pure = layer().bfloat16()(query, neighbours, mask)
    assert pure.dtype == torch.float32 and torch.equal(pure[3], query[3])


def chunk() -> tuple[Outputs, Batch]:
    query, neighbours, mask = inputs()
    out = Outputs({"image": query[:, None], "text": unit(N, 1, D, seed=6)}, torch.tensor(10.0))
    extras = {
        "image_neighbours": neighbours,
        "image_neighbours_mask": mask,
        "text_neighbours": unit(N, K, D, seed=7),
        "text_neighbours_mask": torch.ones(N, K, dtype=torch.bool),
    }
    return out, Batch({}, {}, torch.arange(N), extras=extras)


def heads(query_dropout: float = 0.0) -> FusionHeads:
    found = FusionHeads(FusionSettings(D, K, 4, 2.0), query_dropout)
    found.image, found.text = layer(), layer()
    return found


def test_each_side_has_its_layer_and_a_name_beside_the_unrefined() -> None:
    out, batch = chunk()
    own = heads()
    nn.init.zeros_(own.text.attention_out.weight)
    found = own(out, batch).embeddings
    assert list(found) == ["image", "text", "image@fused", "text@fused"]
    assert torch.equal(found["image"], out.embeddings["image"])
    extras = batch.extras
    for side in ("image", "text"):
        query = out.embeddings[side][:, 0]
        wanted = own.layer(side)(
            query, extras[f"{side}_neighbours"], extras[f"{side}_neighbours_mask"]
        )
        assert torch.equal(found[f"{side}@fused"][:, 0], wanted)


def test_a_side_without_neighbours_passes() -> None:
    out, batch = chunk()
    alone = Outputs({"text": out.embeddings["text"]}, out.logit_scale)
    assert list(heads()(alone, batch).embeddings) == ["text", "text@fused"]
    assert heads()(out, batch._replace(extras={})).embeddings.keys() == {"image", "text"}


def test_query_dropout_is_of_the_refined_embedding_in_training_and_replays() -> None:
    out, batch = chunk()
    own = heads(query_dropout=0.5)
    torch.manual_seed(11)
    first = own(out, batch).embeddings
    torch.manual_seed(11)
    again = own(out, batch).embeddings
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert torch.equal(first["image"], out.embeddings["image"])
    plain = own.eval()(out, batch).embeddings
    changed = (first["image@fused"] != plain["image@fused"]).any(dim=-1)[:, 0]
    assert 0 < int(changed.sum()) < N and not changed[3]  # [3] has no neighbour to be known from
    assert torch.equal(heads().eval()(out, batch).embeddings["image@fused"], plain["image@fused"])


def test_the_share_of_dropped_queries() -> None:
    own = heads(query_dropout=0.25)
    torch.manual_seed(0)
    query, mask = unit(4000, D), torch.ones(4000, 1, dtype=torch.bool)
    found = own._query(query, mask)
    assert float((found != query).any(dim=1).float().mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide the embed dim 16"),
        ({"num_heads": 0}, "num_heads: 0"),
        ({"k": 0}, "k: 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: 0.0"),
    ],
)
def test_settings_that_make_no_layer(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionSettings(D, **change)  # type: ignore[arg-type]


def test_the_four_cells() -> None:
    published = FusionSettings(D)
    assert [published.searched(s) for s in ("image", "text")] == ["image", "text"]
    assert [published.fused(s) for s in ("image", "text")] == ["text", "image"]
    other = FusionSettings(D, search="cross", fusion="uni")
    assert [other.searched(s) for s in ("image", "text")] == ["text", "image"]
    assert [other.fused(s) for s in ("image", "text")] == ["image", "text"]
