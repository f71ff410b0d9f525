# The choice of the sampler's settings: a sweep on the last checkpoint, two heads a layer. Not part of `all`; its result for the shipped model is in the model's folder.


rule sweep:
    input:
        config=ancient(CONFIG),
        tokens=TOKENS,
        model=MODEL_JSON,
    output:
        f"{R}/sweep/sweep.parquet",
        f"{R}/sweep/sweep.md",
    params:
        step=STEPS[-1],
        code=code("workflow/sweep.py"),
    threads: workflow.cores
    log:
        f"{R}/logs/sweep.log",
    benchmark:
        f"{R}/benchmarks/sweep.tsv"
    shell:
        "{PY} workflow/sweep.py --config {input.config} --step {params.step} --tokens {R}/tokens"
        " --model {MODEL} --components 0:0 0:2 1:2 1:5 --out-dir {R}/sweep"
        " --threads {threads} 2>&1 | tee {log}"
