"""Which tests run when: everything that is named nowhere here is quick, and runs with `make test`.

    make test            quick: no other processes, in a few minutes
    make test-processes  commands in processes of their own, killed ones and several at a time
    make test-docs       every command and example that a page names
    make test-browser    the pages of runs and autoencoders in a Chromium, where there is one
    make test-all        all four, as CI runs them

`make test-faults`, `test-peers`, `test-peers-sae`, `test-peers-mi-crow` and `test-tpu` are
campaigns, or need environments of their own.
"""

TIERS = {
    "processes": (
        "tests/faults/",
        "tests/tpu/",
        "tests/test_bounds.py",
        "tests/test_command_costs.py",
        "tests/test_wheel.py",
        "tests/extraction/reading/test_torch_batches.py",
        "tests/inference/test_resume.py",
        "tests/inference/test_steering.py::test_a_mesh_of_several_processes",
        "tests/inference/test_steering.py::test_processes_with_a_mesh_each",
        "tests/inference/test_distributed_inference_with_activations.py::test_real_processes",
        "tests/inference/test_distributed_inference_with_activations.py::test_004s_own_mesh",
        "tests/inference/test_distributed_inference_with_activations.py::test_a_process_that",
        "tests/launch/test_gcloud.py::test_the_real_gcloud",
        "tests/launch/test_local.py",
        "tests/launch/test_pod_run.py",
        "tests/launch/test_whole_way.py",
        "tests/launch/test_worker_script.py",
        "tests/sae/files/test_torch_file.py::test_time_and_memory",
        "tests/sae/test_several_processes.py::test_two_processes",
    ),
    "docs": ("tests/benchmarks/", "tests/docs/", "tests/examples/"),
    "browser": (
        "tests/extraction/report/test_browser.py",
        "tests/sae/evaluation/test_page_in_browser.py",
        "tests/sae/latents/test_page_in_browser.py",
    ),
}
"""Marker of a tier, and how the ids of its tests begin."""
