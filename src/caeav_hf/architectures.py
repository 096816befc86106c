"""Which model class serves a task of the configuration, and which pipeline serves a model class: by name only."""

TASK_MODELS = {
    "ave": "CaeAvForEventLocalization",
    "avvp": "CaeAvForVideoParsing",
    "avs_s4": "CaeAvForSegmentation",
    "avs_ms3": "CaeAvForSegmentation",
    "avqa": "CaeAvForQuestionAnswering",
}

MODEL_PIPELINES = {
    "CaeAvForEventLocalization": "audio-visual-event-localization",
    "CaeAvForVideoParsing": "audio-visual-video-parsing",
    "CaeAvForSegmentation": "audio-visual-segmentation",
    "CaeAvForQuestionAnswering": "audio-visual-question-answering",
}
