"""The lines of the user's code behind what AutoGraph made of it."""


def original_line(frame):
    """`(filename, lineno)` of a frame of generated code, None if AutoGraph did not generate it."""
    here, caller = (frame.f_code.co_filename, frame.f_lineno), frame
    if "__autograph_generated_file" not in here[0]:
        return None
    while caller is not None:
        # The function that calls what was converted holds the map of its lines.
        lines = getattr(caller.f_locals.get("converted_f"), "ag_source_map", {})
        if here in lines:
            return lines[here].loc.filename, lines[here].loc.lineno
        caller = caller.f_back
    return here
