"""A page that finds the audio-visual events of a clip: those both seen and heard."""

import gradio as gr
from transformers import pipeline

import caeav_hf
from caeav_hf.visualization import plot_event_timeline


MODEL = "{{ model_id }}"
find_events = pipeline("audio-visual-event-localization", model=MODEL)


def localize(video, seen, heard, threshold):
    """Return a timeline and a table of the events of an uploaded clip."""
    captions = {"captions": {"visual": seen, "audio": heard}} if seen and heard else {}
    try:
        result = find_events(video, threshold=threshold, **captions)
    except caeav_hf.CaeAvError as error:
        raise gr.Error(str(error)) from error
    seconds = find_events.processor.segment_seconds
    figure = plot_event_timeline(find_events.load_clip(video), result, segment_seconds=seconds, title="")
    rows = [[event["label"], event["start"], event["end"], round(event["score"], 3)] for event in result["intervals"]]
    return figure, rows


page = gr.Interface(
    fn=localize,
    inputs=[
        gr.Video(label="Clip"),
        gr.Textbox(label="What is seen (optional, with what is heard)"),
        gr.Textbox(label="What is heard"),
        gr.Slider(0.05, 0.95, value=0.5, label="Threshold"),
    ],
    outputs=[gr.Plot(label="Timeline"), gr.Dataframe(headers=["event", "start (s)", "end (s)", "score"])],
    title="Audio-visual event localization",
    description=f"Which events of a clip can be both seen and heard, and when: {MODEL}.",
)

if __name__ == "__main__":
    page.launch()
