import imgrl


def test_every_public_name_resolves():
    for name in imgrl._PUBLIC:
        assert getattr(imgrl, name).__name__ == name


def test_the_list_of_names_is_whole():
    assert set(imgrl.__all__) == {"__version__", *imgrl._PUBLIC}


def test_unknown_name_lists_the_known_ones():
    try:
        imgrl.Trainr  # noqa: B018
    except AttributeError as error:
        assert "Trainer" in str(error)
    else:
        raise AssertionError("an unknown name must raise AttributeError")
