"""Small networks with every structure that students are cut from, and a small task."""

import torch
import torch.nn.functional as F
from torch import nn

from laconic import datasets
from laconic.task import Task, TensorSplit


def vgg(widths=(8, 8, "pool", 12, 12, "pool"), hidden=(16,), *, seed=0, size=8):
    torch.manual_seed(seed)
    layers, channels = [], 1
    for width in widths:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            size //= 2
            continue
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    layers.append(nn.Flatten())
    features = channels * size * size
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10)).eval()


class Bottleneck(nn.Module):
    def __init__(self, channels, middle, out, stride=1):
        super().__init__()
        self.c1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.b1 = nn.BatchNorm2d(middle)
        self.c2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(middle)
        self.c3 = nn.Conv2d(middle, out, 1, bias=False)
        self.b3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)  # shared by three calls
        self.down = None
        if channels != out or stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        shortcut = x if self.down is None else self.down(x)
        x = self.relu(self.b1(self.c1(x)))
        x = self.relu(self.b2(self.c2(x)))
        x = self.b3(self.c3(x))
        x += shortcut
        return self.relu(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(
            Bottleneck(16, 8, 32), Bottleneck(32, 8, 32), Bottleneck(32, 16, 64, 2),
            Bottleneck(64, 16, 64),
        )  # fmt: skip
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.stem(x), True))
        x = F.adaptive_avg_pool2d(x, 1)
        x = x.view(x.size(0), -1)
        return self.fc(F.dropout(x, 0.1, self.training))


class DenseGated(nn.Module):
    """Concatenations, then a gate, then a reshape to a fixed number of features."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.a = nn.Conv2d(12, 8, 3, padding=1)
        self.b = nn.Conv2d(20, 8, 3, padding=1)
        self.t = nn.Conv2d(28, 16, 1)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(256, 20)
        self.fc = nn.Linear(20, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        x = F.relu(self.t(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.pool(x * torch.sigmoid(gate))
        return self.fc(F.relu(self.fc1(x.view(-1, 256))))


def small_task(train=160, test=64):
    task = datasets.load("digits", limit=train)
    return Task(kind="classification", train=task.train, test=task.test.take(test))


class OneWalk:
    """A test split that may be walked once; the guard of the rule that it is not searched on."""

    def __init__(self, split):
        self.split, self.walks = split, 0

    def __len__(self):
        return len(self.split)

    def batches(self, size, *, generator=None):
        self.walks += 1
        assert self.walks == 1, "the test split was read twice"
        yield from self.split.batches(size, generator=generator)


def held_out(count=64):
    task = datasets.load("digits")
    tensors = {name: t[-count:] for name, t in task.train.tensors.items()}
    return TensorSplit(tensors)
