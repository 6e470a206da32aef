"""The page's texts in English and Chinese, by key."""

from __future__ import annotations

from html import escape

_TEXTS: dict[str, tuple[str, str]] = {
    "tagline": ("One frozen model, many tasks.", "一个冻结的模型，许多任务。"),
    "playground": ("Playground", "试用"),
    "classify": ("Classify", "分类"),
    "tasks": ("Tasks", "任务"),
    "models": ("Ask side by side", "并排提问"),
    "models_hint": ("The base model and any number of tasks", "基座模型和任意数量的任务"),
    "question": ("Question", "问题"),
    "question_hint": (
        'Enter asks, Shift+Enter begins a new line. {"field": "text"} fills the template of a task.',
        '回车提问，Shift+回车换行。{"字段": "文本"} 填充任务的模板。',
    ),
    "ask": ("Ask", "提问"),
    "stop": ("Stop", "停止"),
    "settings": ("Settings", "设置"),
    "form": ("Send as", "发送方式"),
    "form_chat": ("a chat message", "对话消息"),
    "form_text": ("plain text to continue", "待续写的文本"),
    "max_tokens": ("Longest answer, in tokens", "回答的最大 token 数"),
    "temperature": ("Temperature", "温度"),
    "temperature_hint": ("0 takes the likeliest token every time", "0 表示每次取概率最大的 token"),
    "labellers": ("Classify with", "使用的任务"),
    "labellers_hint": ("Tasks that choose between labels", "在标签之间做选择的任务"),
    "sample": ("Text", "文本"),
    "sample_hint": (
        'Enter classifies, Shift+Enter begins a new line. {"field": "text"} fills several fields.',
        '回车分类，Shift+回车换行。{"字段": "文本"} 填充多个字段。',
    ),
    "task": ("Task", "任务"),
    "version": ("Version", "版本"),
    "version_hint": ("Served from the next request on", "从下一个请求起生效"),
    "rollback": ("Serve this version", "启用此版本"),
    "refresh": ("Refresh", "刷新"),
    "first": ("first token", "首 token"),
    "rate": ("tokens/s", "token/秒"),
    "cached": ("cached tokens", "缓存 token"),
    "of": ("of", "/"),
    "waiting": ("waiting for the first token", "等待首个 token"),
    "empty_answer": ("(an empty answer)", "（空回答）"),
    "served": ("served", "在用"),
    "kind": ("Kind", "种类"),
    "method": ("Method", "方法"),
    "labels": ("Labels", "标签"),
    "size": ("Size", "大小"),
    "metrics": ("Metrics", "指标"),
    "created": ("Created", "创建时间"),
    "all_tasks": ("Tasks that this server offers", "此服务提供的任务"),
    "all_versions": ("Versions of", "版本："),
    "now_served": ("is served now.", "现已启用。"),
    "no_tasks": (
        "There is no task yet: publish one with `foreword publish` or `foreword train --publish`, then refresh.",
        "还没有任务：请用 `foreword publish` 或 `foreword train --publish` 发布，然后刷新。",
    ),
    "nothing_typed": ("Type something first.", "请先输入内容。"),
    "nothing_chosen": ("Choose at least one model.", "请至少选择一个模型。"),
    "no_version": ("Choose a task and a version first.", "请先选择任务和版本。"),
    "ask_to_start": ("Answers appear here, side by side.", "回答会并排显示在这里。"),
    "classify_to_start": ("The probability of every label appears here.", "每个标签的概率会显示在这里。"),
}


def text(key: str, language: str) -> str:
    """Chinese for "zh", and English for every other language."""
    return _TEXTS[key][language == "zh"]


def bilingual(key: str) -> str:
    """HTML with the text in both languages, of which the style sheet shows the page's."""
    english, chinese = _TEXTS[key]
    return f'<span class="en">{escape(english)}</span><span class="zh">{escape(chinese)}</span>'
