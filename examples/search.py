"""The images nearest to a sentence: python examples/search.py "a pleural effusion on the left" FILE …"""

import sys

import numpy as np

import medport

sentence, *paths = sys.argv[1:]
with medport.Client() as client:
    images = client.embed_images(paths)
    query = client.embed_texts(sentence)
similarity = np.asarray(images) @ np.asarray(query)[0]  # rows of length one: the product is the cosine
for position in np.argsort(-similarity)[:6]:
    print(f"{similarity[position]:.3f}  {paths[position]}")
print(images.notice)
