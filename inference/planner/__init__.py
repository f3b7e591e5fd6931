"""What a run will take, before it runs. `command` holds the flags, `plan` makes the plan."""
