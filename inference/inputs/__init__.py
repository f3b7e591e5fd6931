"""From what a user names to samples: tasks, ARC files, data sets, chats, prompts, token ids.

`samples` turns every kind into token ids with the positions whose rows are kept.
"""
