"""
The printed equations of CAE-AV in float64, one frame and one token after the other: Eq. 1 to 13 and 15 to 25.

Only the names of stored weights are taken from the package. A clip is a list of its real
frames, (T, L, C), and a caption the list of its real tokens: what is padded is not there.
"""

import math
from collections.abc import Callable

import numpy as np


Array = np.ndarray
Weights = dict[str, Array]
Map = Callable[[Array], Array]


def under(weights: Weights, prefix: str) -> Weights:
    """Return the weights of a part by their names within it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def linear(x: Array, weights: Weights, name: str) -> Array:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    centred = x - x.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def strongest(tokens: Array, share: float) -> list[int]:
    """Return the K = ceil(rho L) tokens with the largest squared L2 norm."""
    norms = [float(token @ token) for token in tokens]
    order = sorted(range(len(norms)), key=lambda index: -norms[index])
    return order[: math.ceil(share * len(norms))]


def over_time(frames: Array, weights: Weights) -> Array:
    """Convolve three frames at each token position, depthwise with zero padding, then pointwise (Eq. 7)."""
    mixed = np.zeros_like(frames)
    for t in range(len(frames)):
        for token in range(frames.shape[1]):
            total = weights["depthwise.bias"].copy()
            for tap, other in enumerate((t - 1, t, t + 1)):
                if 0 <= other < len(frames):
                    total += weights["depthwise.weight"][:, 0, tap] * frames[other, token]
            mixed[t, token] = linear(total, weights, "pointwise")
    return mixed


def attention(queries: Array, keys: Array, weights: Weights, heads: int) -> Array:
    """Apply multi-head attention of queries (Q, C) to keys (K, C)."""
    width = queries.shape[1] // heads
    outputs = []
    for query in queries:
        q, parts = linear(query, weights, "query"), []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = [q[part] @ linear(key, weights, "key")[part] / math.sqrt(width) for key in keys]
            values = [linear(key, weights, "value")[part] for key in keys]
            parts.append(sum(p * value for p, value in zip(softmax(np.array(scores)), values, strict=True)))
        outputs.append(linear(np.concatenate(parts), weights, "output"))
    return np.stack(outputs)


def caste(frames: Array, other: Array, weights: Weights, share: float) -> tuple[Array, Array, Array]:
    """
    Apply CASTE to one clip (Eq. 1 to 9), once per stage although the paper has it before each block, as the number
    of parameters in Table II requires.

    Returns:
        What is added to the stream (T, L, C), the weights (T, 2) of both enrichments, and the agreement (T,).
    """
    gate, spatial, temporal = (under(weights, f"{part}.") for part in ("agreement_gate", "spatial", "temporal"))
    added, mixes, agreements = np.zeros_like(frames), [], []
    convolved = over_time(frames, under(temporal, "conv."))
    for t, tokens in enumerate(frames):
        v = linear(tokens.mean(0), gate, "stream_projection")
        a = linear(other[t].mean(0), gate, "other_projection")
        g = cosine(v, a)  # Eq. 1
        features = np.concatenate([v, a, v - a, v * a])  # Eq. 2
        logits = linear(np.maximum(linear(features, gate, "hidden"), 0), gate, "logits")  # Eq. 3
        w = softmax(logits + np.array([g, -g]))  # Eq. 4
        context = np.zeros(tokens.shape[1])
        for token in tokens:  # Eq. 5
            context += sigmoid(linear(token, spatial, "gate_projection")) * linear(token, spatial, "key_projection")
        mixed = []
        for token, moved in zip(tokens, convolved[t], strict=True):
            value = linear(token, spatial, "value_projection") * context
            enriched = token + spatial["gamma"] * linear(value, spatial, "output_projection")
            by_space = layer_norm(enriched, spatial, "norm")  # Eq. 6
            by_time = layer_norm(token + temporal["gamma"] * moved, temporal, "norm")  # Eq. 8
            mixed.append(w[0] * by_space + w[1] * by_time)
        for index in strongest(np.stack(mixed), share):  # Eq. 9
            added[t, index] = weights["gamma"] * mixed[index]
        mixes.append(w)
        agreements.append(g)
    return added, np.stack(mixes), np.array(agreements)


def pair(
    visual: Array,
    audio: Array,
    blocks: tuple[tuple[Map, Map], tuple[Map, Map]],
    enrich: tuple[Callable, Callable],
    adapters: tuple[Callable, Callable, Callable, Callable] | None,
) -> tuple[Array, Array]:
    """
    Run one paired block on one clip (Eq. 10 to 13); the audio stream mirrors the visual one.

    Both adapters of the feed-forward half read the streams as the attention half leaves them. Without adapters
    CASTE's enrichment stands in the place of the first ones, which is our reading.

    Args:
        visual, audio: (T, L, C), v0 and a0.
        blocks: Attention and feed-forward branch of the frozen visual and audio block, of one frame.
        enrich: CASTE of both streams, (x, y) -> what is added to x.
        adapters: AVMoE of the attention and the feed-forward half, visual before audio, (x, y) -> addition to x.
    """
    (visual_attention, visual_forward), (audio_attention, audio_forward) = blocks
    dv, da = enrich[0](visual, audio), enrich[1](audio, visual)
    if adapters is not None:
        v, a = visual + dv, audio + da  # Eq. 10
        dv, da = adapters[0](v, a), adapters[1](a, v)  # Eq. 11
    v = np.stack([frame + visual_attention(frame) for frame in visual]) + dv  # Eq. 12
    a = np.stack([frame + audio_attention(frame) for frame in audio]) + da
    new_v = np.stack([frame + visual_forward(frame) for frame in v])  # Eq. 13
    new_a = np.stack([frame + audio_forward(frame) for frame in a])
    if adapters is not None:
        new_v, new_a = new_v + adapters[2](v, a), new_a + adapters[3](a, v)
    return new_v, new_a


def mapped_caption(tokens: Array, weights: Weights, modality: str, heads: int) -> Array:
    """Apply LN(s + MHA(s)), shared by both captions, then the modality's bottleneck (Eq. 15, 16): (N, D) -> (N, C)."""
    attended = attention(tokens, tokens, under(weights, "attention."), heads)
    bottleneck, mapped = under(weights, f"{modality}_bottleneck."), []
    for token, added in zip(tokens, attended, strict=True):
        shared = layer_norm(token + added, weights, "norm")
        down = linear(shared, bottleneck, "down")
        gelu = np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in down])
        mapped.append(linear(gelu, bottleneck, "up"))
    return np.stack(mapped)


def residual_attention(queries: Array, keys: Array, weights: Weights, heads: int) -> Array:
    """Return LN(q + MHA(q, k)); residual and norm are not printed, but follow from Table II's parameter count."""
    attended = attention(queries, keys, under(weights, "attention."), heads)
    return np.stack([layer_norm(q + added, weights, "norm") for q, added in zip(queries, attended, strict=True)])


def residual_feed_forward(tokens: Array, weights: Weights) -> Array:
    """Return LN(x + FFN(x)) with hidden width 2 C and ReLU; not printed, see `residual_attention`."""
    hidden = [np.maximum(linear(token, weights, "hidden"), 0) for token in tokens]
    outputs = [linear(h, weights, "output") for h in hidden]
    return np.stack([layer_norm(x + added, weights, "norm") for x, added in zip(tokens, outputs, strict=True)])


def case(
    visual: Array,
    audio: Array,
    visual_caption: Array,
    audio_caption: Array,
    weights: Weights,
    heads: int,
    share: float,
) -> dict[str, Array]:
    """
    Apply CASE to one clip (Eq. 17 to 21): own attention, caption, other modality, time, injection.

    The print has no feed-forward behind the attentions and no residual around them; see `residual_attention`. The
    captions that frames attend to have passed a self-attention; those that they are compared with have not.

    Returns:
        `visual` and `audio`, the enriched tokens; `visual_agreement` and `audio_agreement` (T,), the cosines;
        `visual_saliency` and `audio_saliency` (T, L).
    """
    streams = {"visual": (visual, visual_caption), "audio": (audio, audio_caption)}
    parts = {name: under(weights, f"{name}_stream.") for name in streams}

    def layer(name: str, part: str) -> Weights:
        return under(parts[name], f"{part}.")

    read = {}
    for name, (frames, caption) in streams.items():
        keys = residual_attention(caption, caption, layer(name, "caption_self_attention"), heads)
        read[name] = []
        for tokens in frames:
            own = residual_attention(tokens, tokens, layer(name, "self_attention"), heads)
            read[name].append(residual_attention(own, keys, layer(name, "caption_cross_attention"), heads))
    results: dict[str, Array] = {}
    for name, (frames, caption) in streams.items():
        other, mixed = read["audio" if name == "visual" else "visual"], []
        for tokens, other_tokens in zip(read[name], other, strict=True):
            keys = np.stack([linear(token, parts[name], "from_other") for token in other_tokens])
            seen = residual_attention(tokens, keys, layer(name, "other_cross_attention"), heads)
            mixed.append(residual_feed_forward(seen, layer(name, "feed_forward")))
        bar = over_time(np.stack(mixed), layer(name, "temporal_conv"))
        enriched, cosines, saliency = frames.copy(), [], []
        for t, tokens in enumerate(bar):
            r = cosine(tokens.mean(0), caption.mean(0))  # Eq. 19
            for index in strongest(tokens, share):  # Eq. 20, 21
                injected = sigmoid(np.array(r)) * layer_norm(tokens[index], parts[name], "norm")
                enriched[t, index] += parts[name]["gamma"] * injected
            cosines.append(r)
            saliency.append([token @ token for token in tokens])
        results |= {name: enriched, f"{name}_agreement": np.array(cosines), f"{name}_saliency": np.array(saliency)}
    return results


def projected(mean: Array, weights: Weights, name: str) -> Array:
    """Project into the space of the losses by layer norm and a linear map."""
    return linear(layer_norm(mean, weights, f"{name}.0"), weights, f"{name}.1")


def contrastive_loss(frames: list[Array], captions: list[Array], clips: list[int], temperature: float) -> float:
    """
    Return InfoNCE, a frame against captions (Eq. 22). A frame's caption is its clip's, so every frame of another clip
    adds a negative, and those of its own clip add none.
    """
    losses = []
    for i, frame in enumerate(frames):
        scores = [cosine(frame, captions[clips[i]]) / temperature]
        scores += [cosine(frame, captions[clip]) / temperature for clip in clips if clip != clips[i]]
        losses.append(-math.log(softmax(np.array(scores))[0]))
    return float(np.mean(losses))


def alignment_loss(visual: list[Array], audio: list[Array]) -> float:
    """Return 1 - mean cosine of both modalities of the same frame (Eq. 23)."""
    return 1 - float(np.mean([cosine(v, a) for v, a in zip(visual, audio, strict=True)]))


def entropy_loss(saliencies: list[list[Array]], temperature: float) -> float:
    """Compute Eq. 24 as printed: minus the entropy of the selection, mean over frames, summed over the modalities."""
    total = 0.0
    for frames in saliencies:
        entropies = []
        for saliency in frames:
            p = softmax(saliency / temperature)
            entropies.append(-sum(float(x) * math.log(x) for x in p if x > 0))
        total += float(np.mean(entropies))
    return -total


def total_loss(task: float, caption: float, alignment: float, entropy: float, weights: dict[str, float]) -> float:
    """Compute Eq. 25; `caption` is the sum of both modalities' terms."""
    return task + weights["alpha"] * caption + weights["beta"] * alignment + weights["gamma"] * entropy
