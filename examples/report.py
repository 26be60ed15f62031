"""A report on one X-ray, in English and in Chinese: python examples/report.py FILE"""

import sys

import medport

with medport.Client() as client:
    print(client.chat("Describe this chest radiograph.", images=sys.argv[1]))
    print(client.chat("請描述這張胸部X光。", images=sys.argv[1], max_tokens=200))
