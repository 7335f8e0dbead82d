"""The names of weights in published checkpoints.

Each function maps the tensors of a pair, by our names in a `PairLoss`, to published tensors. It renames, splits, joins
and permutes them, and changes no number. Tensors without a published name are left out. The names are facts about the
published programs, and no code of theirs is copied.
"""

import re
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Names = Mapping[str, str | Callable[[re.Match], str]]
"""Patterns for the beginnings of our names, and what replaces them."""

NO_WEIGHTS = {r".*pixel_coords\.g_[12]$": ""}
"""Constants in older files."""


def renamed(tensors: Tensors, names: Names) -> Tensors:
    """Rename the tensors whose names a pattern matches, and leave out all others."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, published in names.items():
            if re.match(pattern, name):
                found[re.sub(f"^{pattern}", published, name)] = tensor
                break
    return found


def within(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


_GENESIS_V2: Names = {
    r"guide\.encoder\.unet\.(down|up)\.": r"encoder.\1.",
    r"guide\.encoder\.unet\.mlp\.(\d+)": lambda match: f"encoder.mlp.{int(match[1]) + 1}",
    r"guide\.encoder\.segment\.0\.": "seg_head.",
    r"guide\.encoder\.segment\.1\.": "att_process.colour_head.conv.",
    r"guide\.encoder\.gate$": "att_process.colour_head.gate.gate",
    r"guide\.colouring\.log_bandwidth$": "att_process.log_sigma",
    r"guide\.encoder\.features\.": "feat_head.",
    r"guide\.readout\.": "z_head.",
    r"model\.decoder\.layers\.(\d+)": lambda match: f"decoder_module.{int(match[1]) + 1}",
    r"model\.slot_prior\.cell\.(\w+)": r"prior_lstm.\1_l0",
    r"model\.slot_prior\.raw\.": "prior_linear.",
}


def genesis_v2(pair: Tensors) -> Tensors:
    """The pair of GENESIS-v2, with either slot prior."""
    return renamed(pair, _GENESIS_V2)


_SRI: Names = {
    r"model\.decoder\.layers\.(\d+)": lambda match: f"decoder.{int(match[1]) + 1}",
    r"model\.recurrence\.project_scene": "prior_lstm.scene_encoder",
    r"model\.recurrence\.cell\.(\w+)": r"prior_lstm.lstm.\1_l0",
    r"model\.slot_prior\.loc": "prior_lstm.mu",
    r"model\.slot_prior\.raw_scale": "prior_lstm.sp",
    r"guide\.scene_encoder\.blocks\.(\d+)\.key\.": r"scene_encoder.blocks.\1.k.",
    r"guide\.scene_encoder\.blocks\.(\d+)\.query\.": r"scene_encoder.blocks.\1.q.",
    r"guide\.scene_encoder\.blocks\.(\d+)\.relation": r"scene_encoder.blocks.\1.relational_v",
    r"guide\.scene_encoder\.blocks\.(\d+)\.norm": r"scene_encoder.blocks.\1.norm_pre_ff",
    r"guide\.scene_encoder\.blocks\.(\d+)\.mlp": r"scene_encoder.blocks.\1.mlp",
    r"guide\.scene_encoder\.project": "scene_encoder.project_to_scene_dim",
    r"guide\.scene_posterior\.loc": "scene_encoder.mu_s",
    r"guide\.scene_posterior\.raw_scale": "scene_encoder.sp_s",
    r"guide\.recurrence\.project_scene": "posterior_lstm.scene_encoder",
    r"guide\.recurrence\.cell\.(\w+)": r"posterior_lstm.lstm.\1_l0",
    r"guide\.scale_head": "posterior_lstm.sp",
}


def sri(orderless: Tensors, ordered: Tensors) -> Tensors:
    """SRI's pair and the pair of GENESIS-v2 from which it borrows."""
    borrowed = {f"genesisv2.{name}": tensor for name, tensor in genesis_v2(orderless).items()}
    return borrowed | renamed(ordered, _SRI)


_GENESIS: Names = {
    r"guide\.mask_posterior\.cell\.(\w+)": r"att_process.lstm.\1_l0",
    r"guide\.mask_posterior\.raw": "att_process.linear",
    r"guide\.encoder\.(\d+)\.0\.": r"att_process.core.q_z_nn.\1.conv.",
    r"guide\.component_encoder\.": "comp_vae.encoder_module.module.",
    r"model\.mask_prior\.cell\.(\w+)": r"prior_lstm.\1_l0",
    r"model\.mask_prior\.raw": "prior_linear",
    r"model\.mask_decoder\.first\.": "att_process.core.p_x_nn.0.conv.",
    r"model\.mask_decoder\.layers\.6\.": "att_process.core.p_x_mean.",
    r"model\.mask_decoder\.layers\.(\d+)\.0\.": r"att_process.core.p_x_nn.\1.conv.",
    r"model\.component_decoder\.layers\.(\d+)": lambda match: f"comp_vae.decoder_module.seq.{int(match[1]) + 1}",
    r"model\.component_prior\.": "prior_mlp.",
}
_GENESIS_NORMS: Names = {
    r"guide\.encoder\.(\d+)\.1\.": r"att_process.core.q_z_nn.\1.",
    r"model\.mask_decoder\.layers\.(\d+)\.1\.": r"att_process.core.p_x_nn.\1.",
}


def genesis(pair: Tensors) -> Tensors:
    """The pair of GENESIS. Each of our batch norms joins the two of a gated convolution."""
    found = renamed(pair, _GENESIS)
    for name, tensor in renamed(pair, _GENESIS_NORMS).items():
        layer, _, kind = name.rpartition(".")
        both = tensor.chunk(2) if tensor.ndim else (tensor, tensor)
        found[f"{layer}.h_norm.{kind}"], found[f"{layer}.g_norm.{kind}"] = both
    for kind in ("weight", "bias"):
        both = pair[f"guide.first_mask.{kind}"].chunk(2)
        found[f"att_process.core.q_z_mean.{kind}"], found[f"att_process.core.q_z_var.0.{kind}"] = both
    return found


_EMORL: Names = {
    r"guide\.encoder\.place\.bias": "hvae_networks.pos_embed_projection.bias",
    r"guide\.encoder\.convolutions\.": "hvae_networks.encoder_pt_1.",
    r"guide\.encoder\.norm\.": "hvae_networks.encoder_pt_2.0.",
    r"guide\.encoder\.mlp\.(\d+)": lambda match: f"hvae_networks.encoder_pt_2.{int(match[1]) + 1}",
    r"guide\.attention\.norm\.": "hvae_networks.norm_slots.",
    r"guide\.attention\.query\.": "hvae_networks.to_q.",
    r"guide\.attention\.key\.": "hvae_networks.to_k.",
    r"guide\.attention\.value\.": "hvae_networks.to_v.",
    r"guide\.attention\.residual\.0\.0\.": "hvae_networks.norm_mu_pre_ff.",
    r"guide\.attention\.residual\.1\.0\.": "hvae_networks.norm_softplus_pre_ff.",
    r"guide\.attention\.residual\.0\.(\d+)": lambda match: f"hvae_networks.mlp_mu.{int(match[1]) - 1}",
    r"guide\.attention\.residual\.1\.(\d+)": lambda match: f"hvae_networks.mlp_softplus.{int(match[1]) - 1}",
    r"guide\.refinement\.recurrent\.(\w+)": r"refinenet.recurrence.\1_l0",
    r"guide\.refinement\.encode\.": "refinenet.encoding.",
    r"guide\.refinement\.move\.loc\.": "refinenet.loc.",
    r"guide\.refinement\.move\.raw_variance\.": "refinenet.softplus.",
    r"model\.decoder\.place\.bias": "hvae_networks.image_decoder.pos_embed_projection.bias",
    r"model\.decoder\.layers\.": "hvae_networks.image_decoder.decode.",
    r"model\.below\.0\.": "hvae_networks.indep_prior.z_linear.0.",
    r"model\.below\.2\.loc\.": "hvae_networks.indep_prior.z_mu.",
    r"model\.below\.2\.raw_variance\.": "hvae_networks.indep_prior.z_softplus.",
    r"elbo\.parameter$": "geco_beta",
}


def emorl(pair: Tensors) -> Tensors:
    """The pair of EMORL. Both recurrent cells of its attention are blocks of one cell there."""
    attention = within(pair, "guide.attention.")
    inside = {
        # Columns, ours: 1 - row, 1 - column, row, column. Theirs: 1 - row, row, column, 1 - column.
        "pos_embed_projection.weight": pair["guide.encoder.place.weight"][:, [0, 2, 3, 1]],
        "image_decoder.pos_embed_projection.weight": pair["model.decoder.place.weight"][:, [0, 2, 3, 1]],
        "init_posterior": attention["initial"].unsqueeze(0),
    }
    for ours, candidate in (("ih", "in"), ("hh", "hn")):  # our rows: reset gate, update gate, candidate
        weights = [_gates_and_candidate(attention[f"recurrent.{cell}.weight_{ours}"]) for cell in range(2)]
        for number, parts in enumerate(weights, start=1):
            inside[f"gru.cell.weight_{ours}_{number}"], inside[f"gru.cell.weight_{candidate}_{number}"] = parts
        biases = [_gates_and_candidate(attention[f"recurrent.{cell}.bias_{ours}"]) for cell in range(2)]
        inside[f"gru.cell.bias_{ours}"], inside[f"gru.cell.bias_{candidate}"] = map(
            torch.cat, zip(*biases, strict=True)
        )
    found = renamed(pair, _EMORL) | {f"hvae_networks.{name}": tensor for name, tensor in inside.items()}
    if "geco_beta" in found:
        found["geco_C_ema"] = torch.zeros_like(found["geco_beta"])  # ours is an average of another quantity
    return found


def _gates_and_candidate(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor.tensor_split([2 * len(tensor) // 3])


_GNM: Names = {
    r"guide\.encoder\.": "img_encoder.enc.conv.",
    r"guide\.recurrence\.gates\.": "global_struct_draw.rnn_enc.conv.",
    r"guide\.recurrence\.first\.0": "global_struct_draw.rnn_enc.h_0",
    r"guide\.recurrence\.first\.1": "global_struct_draw.rnn_enc.c_0",
    r"guide\.global_posterior\.": "global_struct_draw.q_global_net.mlp.",
    r"guide\.background_posterior\.": "q_bg_given_x_net.p_bg_encoder.mlp.",
    r"model\.draw\.decoder\.": "global_struct_draw.p_global_decoder_net.mlp.",
    r"model\.draw\.recurrence\.gates\.": "global_struct_draw.rnn_dec.conv.",
    r"model\.draw\.recurrence\.first\.0": "global_struct_draw.rnn_dec.h_0",
    r"model\.draw\.recurrence\.first\.1": "global_struct_draw.rnn_dec.c_0",
    r"model\.draw\.update\.": "global_struct_draw.hid_to_dec_net.conv.0.",
    r"model\.global_prior\.": "global_struct_draw.p_global_net.mlp.",
    r"model\.background_prior\.": "p_bg_given_g_net.p_bg_generator.mlp.",
    r"model\.cells\.features\.": "p_z_given_x_or_g_net.pwdw_net.conv.",
    r"model\.cells\.heads\.z_(\w+)\.": r"p_z_given_x_or_g_net.q_\1_net.",
    r"model\.glimpse_decoder\.layers\.": "local_latent_sampler.z_what_decoder_net.conv.",
    r"model\.background_decoder\.layers\.": "p_bg_decoder.p_bg_decoder.conv.",
}


def gnm(pair: Tensors) -> Tensors:
    """The pair of GNM. The cell net, which both programs use, has one of its two published names."""
    return renamed(pair, _GNM)


_NVAE: Names = {
    r"model\.first_features$": "prior_ftr0",
    r"model\.prior_heads\.": "dec_sampler.",
    r"guide\.heads\.": "enc_sampler.",
    r"guide\.encoder\.stem\.": "stem.",
    r"guide\.encoder\.preprocessing\.": "pre_process.",
    r"guide\.encoder\.top\.": "enc0.",
}
_NVAE_CELLS: Names = {
    r"(.*)excite\.gate\.": r"\1se.se.",
    r"((?:pre|enc).*)branch\.([03])\.": lambda match: f"{match[1]}_ops.{int(match[2]) // 3}.bn_act.",
    r"((?:pre|enc).*)branch\.([25])\.": lambda match: f"{match[1]}_ops.{int(match[2]) // 3}.conv_0.",
    r"((?:pre|enc).*)shortcut\.(\d)\.": lambda match: f"{match[1]}skip.conv_{int(match[2]) + 1}.",
    r"((?:dec|post).*)shortcut\.": r"\1skip.1.",
    r"": "",
}
_NVAE_MOBILE = {0: "0.bn", 1: "1.conv.0", 2: "1.conv.1", 4: "2.conv.0", 5: "2.conv.1", 7: "3", 8: "4.bn"}
"""By our number of a layer of a mobile cell, the published name. All numbers of up cells are higher by 1."""


def nvae(pair: Tensors) -> Tensors:
    """The pair of NVAE. In each direction, the published cells and combiners are numbered in order."""
    up = _starts(pair, r"guide\.encoder\.layers\.(\d+)\.(\d+)\.")
    down = _starts(pair, r"model\.descents\.(\d+)\.cells\.(\d+)\.")
    last = max(int(name.split(".")[3]) for name in pair if name.startswith("model.decoder.cells."))
    names = _NVAE | {
        r"guide\.encoder\.layers\.(\d+)\.(\d+)\.": lambda match: f"enc_tower.{up[int(match[1])] + int(match[2])}.",
        r"guide\.combiners\.(\d+)\.": lambda match: f"enc_tower.{up[-2 - int(match[1])] - 1}.conv.",
        r"model\.descents\.(\d+)\.combine\.": lambda match: f"dec_tower.{down[int(match[1])]}.conv.",
        r"model\.descents\.(\d+)\.cells\.(\d+)\.": (
            lambda match: f"dec_tower.{down[int(match[1])] + 1 + int(match[2])}."
        ),
        r"model\.decoder\.combine\.": f"dec_tower.{down[-1]}.conv.",
        rf"model\.decoder\.cells\.{last}\.": "image_conditional.1.",
        r"model\.decoder\.cells\.": "post_process.",
    }
    cells, found = renamed(renamed(pair, names), _NVAE_CELLS), {}
    for name, tensor in cells.items():
        if match := re.match(r"(.*)branch\.(\d)\.", name):
            is_up = f"{match[1]}skip.1.weight" in cells
            number, *inside = _NVAE_MOBILE[int(match[2]) - is_up].split(".")
            name = ".".join([f"{match[1]}_ops.0.conv.{int(number) + is_up}", *inside, name[match.end() :]])
        found[name.replace("log_norm", "log_weight_norm")] = tensor
    return found


def _starts(tensors: Tensors, pattern: str) -> list[int]:
    """Return the published number of each layer's first module, and that after the last; a combiner has a number."""
    matches = (re.match(pattern, name) for name in tensors)
    numbers = {(int(match[1]), int(match[2])) for match in matches if match}
    layers = [layer for layer, _ in numbers]
    return list(accumulate((layers.count(layer) + 1 for layer in range(max(layers) + 1)), initial=0))
