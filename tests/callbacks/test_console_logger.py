import logging

from fitkit.callbacks.console_logger import ConsoleLogger


def test_a_line_per_epoch_through_the_handlers_logger(drive):
    driver = drive(ConsoleLogger()).fit([0.5, 0.25], last_epoch=9)
    assert driver.handler.lines == [
        "Epoch 1/9: loss=1.0000 val_loss=0.5000",
        "Epoch 2/9: loss=1.0000 val_loss=0.2500",
    ]


def test_where_nobody_listens_the_line_goes_to_standard_error(drive, capsys):
    driver = drive(ConsoleLogger())
    driver.handler.logger = logging.Logger("deaf")
    driver.fit([0.5], last_epoch=9)
    assert capsys.readouterr() == ("", "Epoch 1/9: loss=1.0000 val_loss=0.5000\n")


def test_only_the_main_process_writes(drive):
    driver = drive(ConsoleLogger())
    driver.handler.world.is_main = False
    assert driver.fit([0.5]).handler.lines == []


def test_a_percent_sign_in_a_name_is_a_percent_sign(drive):
    driver = drive(ConsoleLogger()).fit([{"error_%s": 1.0}], last_epoch=1)
    assert driver.handler.lines == ["Epoch 1/1: error_%s=1.0000"]
