"""Files to arrays, and maps to pictures.

In come image files, presets and maps; out come PIL images, arrays that networks take, and files.  Nothing
here knows models.  May import errors.
"""
