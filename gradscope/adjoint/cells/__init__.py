"""The equations of each kind of recurrence, a file each; how to add one: docs/adding.md."""

from gradscope.adjoint.cells.cell import Cell, Local
from gradscope.adjoint.cells.gru import GRUCell
from gradscope.adjoint.cells.lstm import LSTMCell
from gradscope.adjoint.cells.rnn import ElmanCell

#: By the name that ``nn.RNNBase.mode`` has for it, or would have.
CELLS: dict[str, Cell] = {
    "RNN_TANH": ElmanCell(relu=False),
    "RNN_RELU": ElmanCell(relu=True),
    "GRU": GRUCell(),
    "LSTM": LSTMCell(),
}

__all__ = ["CELLS", "Cell", "ElmanCell", "GRUCell", "LSTMCell", "Local"]
