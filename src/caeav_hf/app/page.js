// Moments of a timeline seek its video, whose position the timeline shows. One listener for all timelines, since
// Gradio replaces them.
(() => {
  const videoOf = (timeline) => document.querySelector(`#${timeline.dataset.video} video`);
  const show = (timeline, time) =>
    timeline.style.setProperty("--caeav-time", Math.min(1, time / Number(timeline.dataset.seconds)));

  document.addEventListener("click", (event) => {
    const moment = event.target.closest(".caeav-timeline [data-time]");
    if (!moment) return;
    const timeline = moment.closest(".caeav-timeline");
    const video = videoOf(timeline);
    if (!video) return;
    video.currentTime = Number(moment.dataset.time);
    show(timeline, video.currentTime);
  });

  const follow = (event) => {
    if (!(event.target instanceof HTMLVideoElement)) return;
    for (const timeline of document.querySelectorAll(".caeav-timeline"))
      if (videoOf(timeline) === event.target) show(timeline, event.target.currentTime);
  };
  // Events of media do not bubble.
  for (const name of ["timeupdate", "seeked"]) document.addEventListener(name, follow, true);
})();
