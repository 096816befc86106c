"""Names of the model class of each task and of the pipeline of each model class."""

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
