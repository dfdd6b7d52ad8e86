"""The limits of the house, see house.py: imports between folders, lines, constants."""

import house


def test_every_limit_is_kept():
    broken = house.broken_limits()
    assert not broken, "\n".join(broken)


def test_imports_run_downwards():
    """The list of allowed imports has no way back."""
    allowed = dict(house.MAY_IMPORT)
    while allowed:
        lowest = [folder for folder, others in allowed.items() if not others & set(allowed)]
        assert lowest, f"{sorted(allowed)} import each other"
        for folder in lowest:
            del allowed[folder]


def test_the_folders_of_the_list_are_there():
    files = house.python_files()
    assert all(files[folder] for folder in house.MAY_IMPORT)
    assert len(files["scripts"]) == 14
    assert {*house.TRAINERS, *house.IMAGE_SAMPLERS} <= {script.stem for script in files["scripts"]}
