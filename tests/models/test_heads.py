"""Networks that end in a sigmoid or a softmax give logits, and nothing else of them changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploykit.models.heads import give_logits, said_head, with_activation


class Net(nn.Module):
    """Two inner gates, as squeeze-and-excitation has them, and an end of one's choice."""

    def __init__(self, end, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.gate = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
        self.head = nn.Linear(4, outputs)
        self.last = nn.Sigmoid()
        self.end = end

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        x = x * self.gate(x) * torch.softmax(x, 1)
        return self.end(self, self.head(x))


def answers(net, images):
    with torch.no_grad():
        return net(images)


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda net, x: torch.sigmoid(x), "sigmoid"),
        (lambda net, x: x.sigmoid(), "sigmoid"),
        (lambda net, x: x.clone().sigmoid_(), "sigmoid"),
        (lambda net, x: torch.special.expit(x), "sigmoid"),
        (lambda net, x: functional.sigmoid(x), "sigmoid"),
        (lambda net, x: net.last(x), "sigmoid"),
        (lambda net, x: functional.softmax(x, dim=1), "softmax"),
        (lambda net, x: torch.softmax(input=x, dim=-1), "softmax"),
        (lambda net, x: nn.Softmax(dim=1)(x), "softmax"),
        (lambda net, x: torch.softmax(x, 1).clone().reshape(len(x), -1), "softmax"),
        (lambda net, x: x, ""),
        (lambda net, x: torch.softmax(x, 0), ""),
        (lambda net, x: torch.sigmoid(x) * 0.5, ""),
        (lambda net, x: torch.log_softmax(x, 1), ""),
        (lambda net, x: torch.sigmoid(x).sigmoid(), "sigmoid"),
    ],
)
def test_give_logits_leaves_the_last_activation_out(end, kind):
    net, same = Net(end).eval(), Net(end).eval()
    whole = answers(same, IMAGES)
    assert give_logits(net, (8, 8)) == kind
    found = answers(net, IMAGES)
    if kind:
        made = found.sigmoid() if kind == "sigmoid" else found.softmax(1)
        assert torch.allclose(made, whole, atol=1e-7)
        assert not torch.allclose(found, whole, atol=1e-3)
        with with_activation(net):
            assert torch.equal(answers(net, IMAGES), whole)
        assert torch.equal(answers(net, IMAGES), found)
    else:
        assert torch.equal(found, whole)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda net, x: x.squeeze(1), ""),
        (lambda net, x: torch.sigmoid(x).squeeze(), "sigmoid"),
        (lambda net, x: torch.sigmoid(x.flatten()), "sigmoid"),
    ],
)
def test_give_logits_of_one_number_an_image(end, kind):
    net, plain = Net(end, 1).eval(), Net(lambda net, x: x, 1).eval()
    assert give_logits(net, (8, 8)) == kind
    for count in (1, 4):
        assert torch.equal(answers(net, IMAGES[:count]), answers(plain, IMAGES[:count]))


def test_give_logits_leaves_what_fails_alone():
    net = Net(lambda net, x: {"logits": x}).eval()
    assert give_logits(net, (8, 8)) == ""
    assert give_logits(Net(lambda net, x: x.view(7)).eval(), (8, 8)) == ""


@pytest.mark.parametrize(
    ("told", "head"),
    [
        ({"problem_type": "multi_label_classification"}, "multi-label"),
        ({"hyper_parameters": {"head": "binary"}}, "binary"),
        ({"config": {"problem_type": "single_label_classification"}}, "single-label"),
        ({"head": "resnet", "state_dict": {}}, None),
        ({"head": torch.zeros(2)}, None),
        ([1, 2], None),
        (None, None),
    ],
)
def test_said_head_of_checkpoints(told, head):
    assert said_head(told) == head
