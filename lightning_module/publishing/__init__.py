"""What a finished run says to strangers: its model card, and how both get to a model hub.

The card is made of the run's own files alone, so it says nothing that was not measured.
"""
