# The covariance part of per-token susceptibilities without sampling, at the last per-token
# checkpoint: shards of components, each with all its loss sets, the n_beta = 0 control beside
# the posterior. Where a scale has no `two_layer.per_token.spectral` there is nothing to do.

from susceptibilities.components import component_names, head_names
from susceptibilities.config import model_shape

_spectral_step = _per_token["checkpoints"][-1]
_spectral_shards = 0
if (_spectral := SCALE.two_layer.per_token.spectral) is not None:
    _shape = model_shape(SCALE.two_layer.model)
    _names = _spectral.names(head_names(_shape), [*component_names(_shape), "full"])
    _spectral_shards = min(_per_token["shards"], len(_names))
SPECTRAL_SETS = [
    f"{R}/per_token/step_{_spectral_step:06d}/spectral.{shard}.zarr"
    for shard in range(_spectral_shards)
]


rule per_token_spectral:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=lambda wildcards: (
            [f"{MODEL}/config.json", CHECKPOINTS[int(wildcards.step)]] if IN_FOLDER else MODEL_JSON
        ),
    output:
        directory(f"{R}/per_token/step_{{step}}/spectral.{{shard}}.zarr"),
    wildcard_constraints:
        shard=r"\d+",
    params:
        step=lambda wildcards: int(wildcards.step),
        shards=_spectral_shards,
        control="--control" if _spectral_step in _per_token["control_checkpoints"] else "",
        code=code("workflow/per_token_spectral.py"),
        settings=settings(
            "two_layer.model",
            "two_layer.seed",
            "two_layer.per_token.sampler",
            "two_layer.per_token.spectral",
        ),
    threads: 1
    log:
        f"{R}/logs/per_token_spectral_{{step}}.{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/per_token_spectral_{{step}}.{{shard}}.tsv"
    shell:
        "{PY} workflow/per_token_spectral.py --config {input.config} --step {params.step}"
        " {params.control} --shard {wildcards.shard} --shards {params.shards} --tokens {R}/tokens"
        " --model {MODEL} --out {output} 2>&1 | tee {log}"
