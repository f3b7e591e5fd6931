"""Read inputs and make samples: tasks files, ARC files, data sets, chats, prompts, token ids.

`samples` turns every input into token ids and the positions whose rows are kept.
"""
