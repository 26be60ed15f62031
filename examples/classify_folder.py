"""Zero-shot labels for a folder of images: python examples/classify_folder.py FOLDER"""

import sys
from pathlib import Path

import medport

LABELS = ["no acute finding", "pulmonary nodule", "pleural effusion", "pneumothorax", "cardiomegaly"]

paths = sorted(p for p in Path(sys.argv[1]).iterdir() if p.suffix in (".png", ".dcm"))
with medport.Client() as client:
    result = client.classify(paths, LABELS, templates=["a chest radiograph showing {}"])
for path, item in zip(paths, result, strict=True):
    print(path.name, f"{item.best.label} ({item.best.softmax:.0%})" if item else "could not be read")
print(result.notice)
