"""Encodings found in small files as shops have them, and a guess that says that it is one."""

from pathlib import Path

import pytest

from llm_rerank.data.text_encoding import decode, guess_encoding
from llm_rerank.types import DataError

GERMAN = "item_id,title,Größe\n1,Büroklammern süß,groß\n2,Schöne Grüße,klein\n"
TEXTS = [
    (GERMAN, "cp1252"),
    ("item_id,title,Größe\n1,Becher,M\n", "cp1252"),  # öß: two bytes above 127, one after the other
    ("item_id,title\na,Tasse für Kaffee\n", "cp1252"),
    ("item_id,größe,taste\n" + "1,2,süß\n" * 20, "cp1252"),
    ("item_id,title\n1,Weißöl\n2,naïve\n3,été à la crème brûlée\n", "cp1252"),
    ("item_id,title\n1,Skärbräda i ek\n2,Blå skål\n", "cp1252"),
    ("item_id,title,price\n1,Mug blue,12 €\n2,Cup,£5\n", "cp1252"),
    ("item_id,title\n1,Książka żółta\n2,Krzesło drewniane białe\n3,Ręcznik kąpielowy\n", "cp1250"),
    ("item_id,title\n1,Işıklı çocuk ayakkabısı\n2,Gömlek, beyaz çizgili\n", "cp1254"),
    ("item_id,title\n1,Чашка керамическая белая\n2,Стол письменный\n3,Кофе молотый\n", "cp1251"),
    ("item_id,title\n1,Чашка керамическая белая\n2,Стол письменный\n3,Кофе молотый\n", "koi8_r"),
    ("item_id,title\n1,Ασύρματο ποντίκι\n2,Μηχανικό πληκτρολόγιο\n", "cp1253"),
    ("item_id,title\n1,無線滑鼠 黑色\n2,藍牙耳機 降噪\n3,機械式鍵盤\n", "big5"),
    ("item_id,title\n1,ワイヤレスマウス 黒\n2,ノイズキャンセリング ヘッドホン\n3,机と椅子\n", "cp932"),
    ("item_id,title\n1,ワイヤレスマウス 黒\n2,ノイズキャンセリング ヘッドホン\n3,机と椅子\n", "euc_jp"),
    ("item_id,title\n1,무선 마우스 검정\n2,블루투스 헤드폰\n", "cp949"),
    ("item_id,title\n1,无线鼠标 黑色\n2,蓝牙耳机 降噪\n3,机械键盘\n", "gb18030"),
    ("item_id,title\n1,USB数据线 Type-C\n2,iPhone手机壳\n3,4K显示器 HDR\n", "gb18030"),
]


@pytest.mark.parametrize(("text", "encoding"), TEXTS)
def test_the_encoding_is_guessed_and_called_a_guess(text, encoding):
    found, said = decode(text.encode(encoding), Path("items.csv"))
    assert found == text
    assert said == f"{encoding} (a guess: where letters look wrong, name the encoding)"


def test_a_few_bad_bytes_in_utf_8_cost_these_alone():
    good = "1,Größe für Büro\n" * 500  # four letters above 127 each
    found, said = decode(good.encode() + b"2,Stra\xdfe\n3,\xf0\x9f\x98", Path("items.csv"))  # ß of cp1252, a cut emoji
    assert found == good + "2,Stra\ufffde\n3,\ufffd\ufffd\ufffd"
    assert said == "utf-8 with 4 unreadable bytes (shown as \ufffd)"
    # of 4 x 99 letters and 4 bytes 1 % are unreadable, of 4 x 98 more
    assert decode(b"\xdf" * 4 + ("größe für Büro\n" * 99).encode(), Path("items.csv"))[1].startswith("utf-8 with 4")
    assert "(a guess" in decode(b"\xdf" * 4 + ("größe für Büro\n" * 98).encode(), Path("items.csv"))[1]


def test_a_guess_reads_a_part_and_fits_the_whole():
    russian = ("1,Чашка керамическая белая\n" * 5000).encode("cp1251")
    assert guess_encoding(russian) == "cp1251"
    german = ("1,Größe für Büro\n" * 5000).encode("cp1252") + b"2,Gr\x81\n"  # a byte that Windows-1252 lacks
    german.decode(guess_encoding(german))
    assert guess_encoding(german) != "cp1252"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "gb18030"])
def test_a_byte_order_mark_is_no_text_where_the_encoding_is_named(encoding):
    assert decode(("\ufeff" + GERMAN).encode(encoding), Path("items.csv"), encoding) == (GERMAN, encoding)


def test_what_is_known_is_no_guess():
    assert decode(GERMAN.encode(), Path("items.csv")) == (GERMAN, "utf-8")
    assert decode(GERMAN.encode("utf-16"), Path("items.csv")) == (GERMAN, "utf-16")
    assert decode(GERMAN.encode("cp1252"), Path("items.csv"), "cp1252") == (GERMAN, "cp1252")
    with pytest.raises(DataError, match="items.csv cannot be read as utf-8 .*such as encoding='cp1252'"):
        decode(GERMAN.encode("cp1252"), Path("items.csv"), "utf-8")
