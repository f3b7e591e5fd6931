"""The distributed command onto TPU pods, clusters, or several processes here, and back.

`python -m launch` runs the commands. Read in this order: `settings`; for TPU VMs `gcloud`,
`package`, `worker_script` (what a worker does), `slice_state`, `life_cycle` (the decisions),
`pod_run` (the loop); `finished_run`; then `gke`, `slurm`, `local`; `plan` is independent.
"""

from extraction.version import __version__

__all__ = ["__version__"]
