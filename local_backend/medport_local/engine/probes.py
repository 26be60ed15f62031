"""What a quantised model is compared with its base on: short texts and drawings. Nothing medical, nobody's data.

Written and drawn for this purpose. They are fixed, so that figures of different snapshots can be compared; whoever
changes one changes ``VERSION``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

VERSION = 1

TEXTS = (
    "The ferry leaves the northern pier at half past six and reaches the island before the bakery opens. "
    "In winter it carries more letters than passengers, and the captain knows most of the senders by their "
    "handwriting.",
    "To repot a fern, water it the evening before. Loosen the roots with your fingers, set the plant no "
    "deeper than it stood, and fill the gap with loose soil. Keep it out of the sun for a week.",
    "Bridges made of stone last because stone is good at being pressed. An arch turns the weight of the "
    "road into pressure along its curve, and the banks of the river take up the thrust.",
    "Minutes of the chess club, 14 March. Present: eleven members. The treasurer reported a balance of "
    "218.40. It was agreed to buy four new clocks and to move the spring tournament to the second Saturday "
    "in May.",
    '"You could have told me," she said, and closed the umbrella. He looked at the puddle between them. "I '
    'did tell you. Twice. The second time you were singing."',
    "Prime numbers thin out as one goes on, but slowly. Below 100 there are 25 of them, below 1000 there "
    "are 168, and below 10000 there are 1229. Near a large number n, about one number in ln(n) is prime.",
    "The museum is open from 10:00 to 18:00, on Thursdays until 21:00. Children under twelve enter free of "
    "charge. Large bags must be left at the cloakroom. Photography without flash is permitted.",
    "A good map leaves things out. The one on the wall of the station shows no hills, no houses and no "
    "distances, and everybody finds the way with it.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    return sum(values) "
    "/ len(values)\n\n\n"
    "def variance(values):\n    m = mean(values)\n    return mean([(v - m) ** 2 for v in values])\n",
    '{"name": "lighthouse", "height_m": 34, "built": 1871, "automatic": true, "colours": ["red", "white"], '
    '"position": {"lat": 54.43, "lon": 13.44}}',
    "| month | rain (mm) | sun (h) |\n"
    "|---|---|---|\n"
    "| April | 41 | 168 |\n"
    "| May | 52 | 221 |\n"
    "| June | 66 | 219 |\n"
    "| July | 73 | 230 |\n",
    "Der letzte Zug nach Süden hielt nur noch, wenn jemand am Bahnsteig die Lampe hob. An diesem Abend hob "
    "sie niemand, und doch wurde der Zug langsamer, als hätte er sich an etwas erinnert.",
    "Für den Teig werden Mehl, Hefe und lauwarmes Wasser verrührt und zugedeckt eine Stunde stehen "
    "gelassen. Danach knetet man Salz und Öl darunter und formt zwei runde Laibe.",
    "Le marché s'installe avant l'aube, quand la place est encore humide. Les premiers clients sont les "
    "cuisiniers; ils choisissent vite, parlent peu et repartent avec des cageots pleins.",
    "Pour régler l'horloge, ouvrez la petite porte, arrêtez le balancier et tournez l'aiguille des minutes "
    "dans le bon sens jusqu'à l'heure voulue.",
    "El faro se ve desde la última curva de la carretera. Mi abuelo decía que, si uno contaba los "
    "destellos sin equivocarse, al día siguiente no llovía.",
    "Il sentiero sale tra i castagni e dopo un'ora arriva a una fontana. Chi ha fretta prende a destra; "
    "chi vuole vedere il lago continua dritto e non se ne pente.",
    "O barco foi pintado de verde no ano em que nasci, e desde então ninguém lhe mudou a cor. Diz-se que "
    "os peixes já o conhecem e que por isso não fogem.",
    "Op zolder vonden we een doos met glasplaten: straten zonder auto's, een kermis, een hond die te snel "
    "had bewogen om scherp te zijn.",
    "Na rynku stoi studnia, z której nikt już nie czerpie wody, ale każdy, kto przechodzi, zagląda do "
    "środka, jakby sprawdzał, czy echo jeszcze tam mieszka.",
    "Поезд шёл через степь весь день, и за окном ничего не менялось, кроме света. К вечеру проводница "
    "принесла чай и сказала, что скоро будет река.",
    "Günün ilk vapuru kalktığında martılar hâlâ uyuyordu. Çaycı, bardakları sayarken eski bir şarkıyı mırıldandı.",
    "村口有一棵老樟树,夏天的傍晚,大家搬着凳子在树下乘凉。老人讲从前的故事,孩子们一边听,一边数天上的星星。",
    "先把面粉和水和成面团,盖上湿布放半个小时,再擀成薄片,切成细条。水开以后下锅,煮三分钟就好。",
    "駅前の古本屋は、雨の日だけ店の外に椅子を出す。理由を聞くと、店主は「雨宿りの人は長く読むから」と笑った。",
    "산길을 따라 한 시간쯤 올라가면 작은 절이 나온다. 마당에는 감나무가 한 그루 있고, 가을이면 새들이 먼저 "
    "와서 맛을 본다.",
    "كان البائع يرتّب البرتقال كل صباح على شكل هرم، ثم يأخذ واحدة من القمة ويعطيها لأول طفل يمرّ.",
    "गाँव के बाहर एक पुराना पुल है। बरसात में नदी उसके ऊपर से बहती है और बच्चे किनारे बैठकर नावें तैराते हैं।",
)

CAPTIONS = (
    "A drawing of simple shapes: a disc on a dark ground, and beside it a brighter square.",
    "Stripes that run from the lower left to the upper right, all of the same width.",
)
"""Each follows a drawing, in the order of ``drawings``."""


def drawings(side_px: int = 448) -> tuple[npt.NDArray[np.uint8], ...]:
    """uint8 ``[side_px, side_px, 3]`` each, grey."""
    down, across = np.mgrid[0:side_px, 0:side_px] / side_px
    disc = (across - 0.35) ** 2 + (down - 0.6) ** 2 < 0.04
    square = (abs(across - 0.72) < 0.12) & (abs(down - 0.3) < 0.12)
    shapes = 40 + 110 * disc + 180 * square
    stripes = 127.5 + 100 * np.sin(40 * (across + down))
    return tuple(np.repeat(picture.astype(np.uint8)[:, :, None], 3, axis=2) for picture in (shapes, stripes))
