"""Tables, conclusions and plots of finished cells.

In: cells and records. Out: text and pictures. Nothing is trained here.
"""
