"""What users ask, per kind and language, and the small world of the text-only answers."""

from medport_local.phantom.words import Language

Wordings = dict[Language, tuple[str, ...]]

THINK = "SYSTEM INSTRUCTION: think silently if needed. "
"""The published system prefix that asks for a thinking answer."""

SYSTEM_TEXTS = (
    "You are an expert radiologist.",
    "You are a helpful medical assistant.",
    "You are a radiologist.",
    "你是放射科專家。",
    "You are a helpful assistant.",
)

DESCRIBE: Wordings = {
    "en": (
        "Describe this chest radiograph.",
        "What is the finding?",
        "What does this x-ray show?",
        "Report the findings.",
        "What abnormality is present?",
        "Interpret this image.",
        "Describe this X-ray",
        "Describe this chest X-ray.",
        "Describe this image.",
        "What do you see?",
        "What is in this image?",
        "Write a report.",
        "What are the findings?",
        "Describe the findings.",
        "Is anything abnormal?",
    ),
    "zh": (
        "請描述這張胸部X光。",
        "這張影像有什麼發現？",
        "請報告所見。",
        "影像顯示什麼異常？",
        "請判讀這張影像。",
        "請描述這張影像。",
        "有什麼發現？",
        "請寫報告。",
    ),
}
SIDE: Wordings = {
    "en": ("Which side is affected?", "On which side is the finding?", "Which side?", "Is it left or right?"),
    "zh": ("哪一側有異常？", "病灶在哪一側？", "哪一側？"),
}
JSON: Wordings = {
    "en": (
        "Answer in JSON.",
        "Return the finding as JSON.",
        "Give a JSON report of this image.",
        "Report the findings as JSON.",
        "Describe this chest radiograph in JSON.",
    ),
    "zh": ("請用JSON回答。", "請以JSON格式報告所見。"),
}
BOX: Wordings = {
    "en": (
        "Locate the finding.",
        "Where is the finding? Give a box.",
        "Where is the abnormality? Give a bounding box.",
        "Draw a box around the finding.",
        "Detect the abnormality.",
    ),
    "zh": ("請標出病灶位置。", "病灶在哪裡？請給座標框。"),
}
IS_THERE: Wordings = {
    "en": ("Is there {}?", "Does this image show {}?", "Do you see {}?", "Does the patient have {}?"),
    "zh": ("有{}嗎？", "這張影像有{}嗎？", "是否有{}？"),
}
IS_NORMAL: Wordings = {
    "en": ("Is this image normal?", "Is the chest normal?", "Is this a normal radiograph?"),
    "zh": ("這張影像正常嗎？", "是正常的嗎？"),
}
COMPARE: Wordings = {
    "en": (
        "Compare the two images.",
        "What has changed?",
        "Compare the first image with the second.",
        "Is the finding new, resolved or unchanged?",
        "Compare the prior and the current radiograph.",
    ),
    "zh": ("請比較這兩張影像。", "有什麼變化？", "請比較先前與目前的影像。"),
}
SLICE_WHICH: Wordings = {
    "en": ("Which slice shows a finding?", "On which slice is the abnormality?", "Which slice is abnormal?"),
    "zh": ("哪一張切面有異常？", "異常在哪一張？"),
}
SLICE_LIST: Wordings = {
    "en": ("List the finding of each slice.", "Describe each slice."),
    "zh": ("請列出每一張的所見。", "請描述每一張切面。"),
}
SLICE_INSTRUCTIONS: Wordings = {
    "en": ("You are given several slices.", "Review the slices below."),
    "zh": ("以下是數張切面。",),
}

WORLD: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("What is a pneumothorax?", "Air in the pleural space."),
        ("What is a pleural effusion?", "Fluid in the pleural space."),
        ("What is cardiomegaly?", "An enlarged heart."),
        ("What is a pulmonary nodule?", "A small round opacity in the lung."),
        ("What is a consolidation?", "A patch of lung filled with fluid instead of air."),
        ("What is a clavicle fracture?", "A break in the collarbone."),
        ("Who are you?", "I am a phantom model trained on drawings. Not for medical use."),
        ("What are you?", "I am a phantom model trained on drawings. Not for medical use."),
        ("Can I use you for diagnosis?", "No. I am trained on drawings only and am not for medical use."),
        ("How many lungs are there?", "Two."),
        ("Which side is the heart on?", "Mostly on the left."),
        ("Hello", "Hello. Send me a phantom radiograph."),
        ("Hello!", "Hello. Send me a phantom radiograph."),
        ("What can you find?", "Nodule, effusion, pneumothorax, cardiomegaly, fracture and consolidation."),
        ("Thank you.", "You are welcome."),
        ("Say hello.", "Hello. Send me a phantom radiograph."),
    ),
    "zh": (
        ("什麼是氣胸？", "肋膜腔內有空氣。"),
        ("什麼是胸腔積液？", "肋膜腔內有液體。"),
        ("什麼是心臟擴大？", "心臟變大。"),
        ("什麼是肺結節？", "肺內的小圓形陰影。"),
        ("什麼是肺實變？", "肺泡內充滿液體而非空氣。"),
        ("什麼是鎖骨骨折？", "鎖骨斷裂。"),
        ("你是誰？", "我是以繪圖訓練的假體模型，不可用於醫療。"),
        ("可以用你診斷嗎？", "不可以。我只用繪圖訓練，不可用於醫療。"),
        ("有幾個肺？", "兩個。"),
        ("心臟在哪一側？", "偏左側。"),
        ("你好", "你好。請傳一張假體X光。"),
        ("你能找什麼？", "結節、積液、氣胸、心臟擴大、骨折和實變。"),
        ("謝謝", "不客氣。"),
    ),
}
"""Questions that need no image, with their answers."""
