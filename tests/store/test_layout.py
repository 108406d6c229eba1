from hypothesis import example, given
from hypothesis import strategies as st

from gradscope.store.layout import escape, group_of, site_of, unescape
from gradscope.store.part import SITE_NAMES

NAMES = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too


@given(NAMES)
@example("")
@example("..")
@example("%")
@example("%2E")
def test_any_name_survives_as_one_link_name(name):
    link = escape(name)
    assert unescape(link) == name
    assert link not in {"", ".", ".."}
    assert not set("/\0") & set(link)
    link.encode()


@given(NAMES | st.sampled_from(["cell/step", "a/b/l0", "/", "l0"]))
def test_any_site_survives_as_a_group(site):
    assert site_of(group_of(site)) == site
    suffix = group_of(site).split("/")[2:]
    assert not SITE_NAMES.intersection(suffix)


def test_ordinary_sites_are_where_a_user_of_xarray_looks():
    assert group_of("encoder.lstm/l1_reverse") == "sites/encoder.lstm/l1_reverse"
    assert group_of("rnn/l0#2") == "sites/rnn/l0#2"
