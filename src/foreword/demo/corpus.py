"""The demo's customer-service corpus: invented messages, each with a category and a reply in the house style.

`foreword demo` learns from it and the benchmarks measure with it. Every sentence was written for this
project; rows are drawn from the patterns below, so a seed names a corpus and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from random import Random
from typing import Literal

from foreword.errors import UsageError

Language = Literal["en", "zh"]

CATEGORIES: tuple[str, ...] = ("billing", "delivery", "returns", "account", "product")

TEMPLATE = "Customer message: {message}\nCategory and reply:{target:answer}"

SIGNATURES: dict[Language, str] = {"en": "— Mina, Foreword Care", "zh": "— 小敏"}

REPLIES: dict[Language, dict[str, str]] = {
    "en": {
        "billing": "Thanks! We will check the {amount} charge today and email you.",
        "delivery": "Sorry! We will trace your {item} today and email you.",
        "returns": "Certainly! We will email a free return label for your {item}.",
        "account": "Gladly! Please open the secure account link that we just emailed you.",
        "product": "Hello! We will email you the full guide to the {item}.",
    },
    "zh": {
        "billing": "感谢！今天核对{amount}扣款。",
        "delivery": "抱歉！今天为您追查{item}。",
        "returns": "好的！马上发送{item}退货单。",
        "account": "放心！请点邮件里的安全链接。",
        "product": "您好！今天发您{item}的说明。",
    },
}

# Words of a reply whose message names no item or no amount.
DEFAULT_WORDS: dict[Language, dict[str, str]] = {
    "en": {"item": "order", "amount": "recent"},
    "zh": {"item": "订单", "amount": "这笔"},
}


@dataclass(frozen=True)
class SentencePatterns:
    """Sentences with slots, of one category in one language; `split` keeps the `held_out` ones for held-out rows."""

    common: tuple[str, ...]
    held_out: tuple[str, ...]


PATTERNS: dict[Language, dict[str, SentencePatterns]] = {
    "en": {
        "billing": SentencePatterns(
            common=(
                "I was charged {amount} twice for the {item}, can you check?",
                "Why does my card statement show {amount} instead of the advertised price?",
                "My invoice says {amount}, but the {item} was on sale.",
                "You took {amount} from my card on {day} and I ordered nothing.",
                "Could you send me a proper invoice for the {amount} I paid?",
                "The discount code did not work and I paid the full {amount}.",
                "I still see a pending payment of {amount} on my bank account.",
                "The refund of {amount} has not reached my card since {day}.",
                "Please explain the extra {amount} fee on my last bill.",
                "My gift card was not applied, so I paid {amount} too much.",
                "Payment failed on {day}, yet {amount} left my bank anyway.",
                "I think the tax on my invoice for {day} was calculated wrongly.",
                "Can I get a receipt for the {item} in my company name?",
            ),
            held_out=(
                "Somebody billed me {amount} for the {item} that I cancelled on {day}.",
                "There are two identical payments of {amount} on my statement.",
                "Was {amount} really the correct price? My bill looks too high.",
                "My card was billed on {day} and nobody can tell me why.",
            ),
        ),
        "delivery": SentencePatterns(
            common=(
                "My {item} was due on {day} and still has not arrived.",
                "The tracking page for my {item} has not moved since {day}.",
                "Where is my {item}? I ordered it last {day}.",
                "The courier left my {item} with a neighbour I do not know.",
                "Can you ship the {item} to my office in {city} instead?",
                "The parcel says delivered, but there is no {item} at my door.",
                "Could the driver bring my {item} after six on {day}?",
                "I missed the courier on {day}, when will my {item} come again?",
                "How long does shipping a {item} to {city} usually take?",
                "My {item} seems stuck at the depot in {city}.",
                "I typed the wrong street, please send the {item} to {city}.",
                "When will my parcel reach {city}? It left on {day}.",
                "The driver could not find my building in {city}, please try again.",
            ),
            held_out=(
                "Nobody rang on {day} and the {item} went back to the depot.",
                "It has been nine days, is the {item} lost in the post?",
                "Please hold my {item} at the pickup point in {city} until {day}.",
                "My box has been travelling around {city} since {day}, any news?",
            ),
        ),
        "returns": SentencePatterns(
            common=(
                "The {item} is too small, how do I send it back?",
                "I would like to return the {item} I bought on {day}.",
                "The {item} arrived broken and I want to exchange it.",
                "You sent me the wrong {item}, I need to swap it.",
                "I changed my mind about the {item}, can I return it unopened?",
                "Can I swap my {item} for the {colour} one?",
                "My {item} fell apart on {day}, I want to give it back.",
                "How many days do I have to return a {item}?",
                "I already own a {item} like this one, can I return it?",
                "This {amount} {item} does not fit me, can I send it back?",
                "Where do I post the {item} that I want to send back?",
                "Do I need the original box to return my {item}?",
                "Everything came damaged on {day}, how do I send it back?",
            ),
            held_out=(
                "The {item} looks nothing like the photo, I want to hand it back.",
                "A crack runs through my {item}, please replace it with a new one.",
                "My daughter dislikes the {item}, may we exchange it for something else?",
                "I regret what I bought on {day}, how do I send everything back?",
            ),
        ),
        "account": SentencePatterns(
            common=(
                "I forgot my password and cannot log in on my {device}.",
                "Please change the email address on my account before {day}.",
                "My account has been locked since {day}, can you open it?",
                "The login code never reaches my {device}, what now?",
                "How do I delete my account and all my data?",
                "I want to change the phone number in my profile before {day}.",
                "Somebody else logged in to my account on {day}.",
                "I cannot sign in on my {device}, my username is unknown.",
                "Can I merge my two accounts into one login?",
                "Please stop sending newsletters to my {device}, I never subscribed.",
                "My profile shows the wrong name, it should be {name}.",
                "The app on my {device} keeps logging me out since {day}.",
                "How can I turn on two-step login on my {device}?",
            ),
            held_out=(
                "My {device} was stolen on {day}, please sign me out everywhere.",
                "The reset email for my password did not come on {day}.",
                "I married on {day}, how do I update my surname in the profile?",
                "The sign-up page on my {device} says my email is already registered.",
            ),
        ),
        "product": SentencePatterns(
            common=(
                "Does the {item} come in dark {colour}, or only in white?",
                "What exactly is the {item} made of?",
                "How much does the {item} weigh with its packaging?",
                "Is the {item} suitable for a child of eight?",
                "How do I clean the {item} without damaging it?",
                "Which size of {item} is best for travelling?",
                "Can I use the {item} outdoors in the rain?",
                "Does the {item} come with a manual in Spanish?",
                "What is the difference between the small and the large {item}?",
                "Will the {colour} {item} be back in stock by {day}?",
                "Can I buy spare parts for the {colour} {item}?",
                "How long is the warranty on the {amount} {item}?",
                "Where is the {item} made, and is the material recycled?",
            ),
            held_out=(
                "Before I buy, tell me whether the {item} fits in a suitcase.",
                "Is the {colour} {item} lighter than the model of last year?",
                "What are the exact measurements of the {colour} {item}?",
                "Would the {item} survive a week of camping?",
            ),
        ),
    },
    "zh": {
        "billing": SentencePatterns(
            common=(
                "买{item}为什么扣了我两次{amount}？",
                "账单上多了{amount}，是怎么回事？",
                "{day}扣了{amount}，可我没有下单。",
                "优惠码没生效，多付了{amount}。",
                "退款{amount}还没到我的银行卡。",
                "请给我开一张{amount}的发票。",
                "我{day}的账单金额好像算错了。",
            ),
            held_out=(
                "银行卡{day}被重复扣款{amount}。",
                "{item}打折了，怎么还收{amount}？",
            ),
        ),
        "delivery": SentencePatterns(
            common=(
                "我的{item}{day}该到，现在还没收到。",
                "{item}的物流从{day}起没有更新。",
                "我的{item}什么时候能送到{city}？",
                "快递显示已签收，但我没收到{item}。",
                "能把{item}改送到{city}的公司吗？",
                "{day}没人在家，{item}能再送一次吗？",
                "包裹卡在{city}好几天了，怎么办？",
            ),
            held_out=(
                "我的{item}是不是在{city}寄丢了？",
                "快递员{day}晚上能再送一次{item}吗？",
            ),
        ),
        "returns": SentencePatterns(
            common=(
                "{item}太小了，我想退货。",
                "收到的{item}是坏的，我要换一个。",
                "{item}颜色发错了，可以换吗？",
                "我{day}买的{item}可以退货吗？",
                "我不想要{item}了，怎么退货？",
                "退{item}需要原来的包装盒吗？",
                "{day}买的东西不合适，我想全退掉。",
            ),
            held_out=(
                "{item}有一道裂缝，请给我换新的。",
                "{item}和照片不一样，我想退回去。",
            ),
        ),
        "account": SentencePatterns(
            common=(
                "我忘记密码了，{device}上登录不了。",
                "请在{day}前修改我账户的邮箱地址。",
                "我的账户从{day}起被锁定了。",
                "{device}一直收不到登录验证码。",
                "怎么注销账户并删除我的资料？",
                "我想更换账户绑定的手机号码。",
                "{day}好像有人登录了我的账户。",
            ),
            held_out=(
                "{device}丢了，请让账户全部退出登录。",
                "个人资料里的姓名写错了，怎么改？",
            ),
        ),
        "product": SentencePatterns(
            common=(
                "请问{item}是什么材料做的？",
                "你们的{item}有{colour}的吗？",
                "{item}适合八岁的孩子用吗？",
                "{item}怎么清洗才不会坏？",
                "{item}可以在户外淋雨用吗？",
                "{item}有多重，方便带着旅行吗？",
                "大号和小号的{item}有什么区别？",
            ),
            held_out=(
                "{colour}的{item}具体尺寸是多少？",
                "买之前想问，{item}的保修期多久？",
            ),
        ),
    },
}

# Every English item starts with a consonant, so that "a {item}" is always right.
SLOTS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "item": (
            *("kettle", "desk lamp", "backpack", "rain jacket", "coffee grinder", "yoga mat", "wool blanket"),
            *(
                "bike helmet",
                "water bottle",
                "teapot",
                "picnic basket",
                "travel mug",
                "folding chair",
                "wall clock",
            ),
            *("toaster", "canvas wallet", "camping tent", "garden bench"),
        ),
        "amount": tuple(f"${n}" for n in range(12, 140)),
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "city": ("Leeds", "Boston", "Dublin", "Denver", "Bristol", "Toronto", "Portland", "Perth"),
        "colour": ("green", "blue", "red", "grey", "brown"),
        "device": ("phone", "laptop", "tablet", "computer"),
        "name": ("Anna", "Tom", "Priya", "Lucas", "Grace", "Omar", "Julia", "Kenji"),
    },
    "zh": {
        "item": (
            *("水壶", "台灯", "背包", "雨衣", "毛毯", "头盔", "水杯", "茶壶", "挂钟", "帐篷", "钱包"),
            *("折叠椅", "瑜伽垫", "保温杯"),
        ),
        "amount": tuple(f"{n}元" for n in range(12, 140)),
        "day": ("周一", "周二", "周三", "周四", "周五", "周六", "周日"),
        "city": ("上海", "北京", "广州", "成都", "杭州", "南京"),
        "colour": ("绿色", "蓝色", "红色", "灰色"),
        "device": ("手机", "电脑", "平板"),
    },
}

# Frames of a message, drawn evenly: the bare "{}" is repeated so that most messages have none.
GREETINGS: dict[Language, tuple[str, ...]] = {
    "en": (
        *("{}",) * 8,
        *("Hi! {}", "Hello there! {}", "Good morning. {}", "Hi, {name} here. {}"),
        *("{} Thanks!", "{} Please help.", "{} Thank you, {name}."),
    ),
    "zh": (*("{}",) * 4, "你好，{}", "您好，{}", "{}谢谢。", "{}急！"),
}

# Misspellings; about one English message in twenty-five has one.
TYPOS: dict[str, str] = {
    "charged": "chraged",
    "payment": "paymnet",
    "address": "adress",
    "account": "acount",
    "password": "pasword",
    "because": "becuase",
    "arrived": "arived",
    "tracking": "traking",
    "parcel": "parcle",
    "return": "retrun",
    "exchange": "exhange",
    "between": "betwen",
    "warranty": "waranty",
    "please": "plese",
}
TYPO_RATE = 0.08  # about half of the patterns hold a word of TYPOS


@dataclass(frozen=True)
class CustomerMessage:
    """One customer's message, with its category and the reply in the house style."""

    message: str
    category: str
    reply: str
    language: Language

    @property
    def answer(self) -> str:
        """The target text: the category on the first line, the reply on the second."""
        return f" {self.category}\n{self.reply}"

    def to_json(self) -> dict[str, str]:
        """The fields and the answer, for a line of a JSONL file."""
        return {**asdict(self), "answer": self.answer}


def generate(count: int, seed: int) -> list[CustomerMessage]:
    """`count` rows with no message twice, even over the categories, one in four Chinese.

    The same `count` and `seed` give the same rows on every machine; a few thousand can be asked for.
    """
    return _draw_rows(count, Random(seed), lambda patterns: patterns.common + patterns.held_out, used=set())


def split(train: int, held_out: int, seed: int) -> tuple[list[CustomerMessage], list[CustomerMessage]]:
    """Training and held-out rows, with no message in both.

    About half of the held-out rows are built from `SentencePatterns.held_out`, which no training row uses.
    """
    random, used = Random(seed), set[str]()

    def half_held_out(patterns: SentencePatterns) -> tuple[str, ...]:
        return patterns.held_out + tuple(random.sample(patterns.common, len(patterns.held_out)))

    train_rows = _draw_rows(train, random, lambda patterns: patterns.common, used)
    return train_rows, _draw_rows(held_out, random, half_held_out, used)


def category_of(answer: str) -> str:
    """The category that an answer, generated or true, states on its first line; "" if that line is empty."""
    first, _, _ = answer.partition("\n")
    return first.strip().lower()


def _draw_rows(
    count: int, random: Random, pool: Callable[[SentencePatterns], Sequence[str]], used: set[str]
) -> list[CustomerMessage]:
    """Rows whose messages are not in `used`, which grows; the patterns of `pool` are used in turn."""
    turns: dict[tuple[Language, str], Iterator[str]] = {}
    for language, categories in PATTERNS.items():
        for category, patterns in categories.items():
            candidates = pool(patterns)
            turns[language, category] = cycle(random.sample(candidates, len(candidates)))

    rows: list[CustomerMessage] = []
    for index in range(count):
        lap, place = divmod(index, len(CATEGORIES))
        language: Language = "zh" if (lap + place) % 4 == 3 else "en"
        category = CATEGORIES[place]
        rows.append(_next_unused(turns[language, category], category, language, random, used))
    random.shuffle(rows)
    return rows


def _next_unused(
    turns: Iterator[str], category: str, language: Language, random: Random, used: set[str]
) -> CustomerMessage:
    for pattern in islice(turns, 1000):
        row = _fill_pattern(pattern, category, language, random)
        if row.message not in used:
            used.add(row.message)
            return row
    raise UsageError(
        f"demo corpus: the {language} patterns for {category!r} give no new message after {len(used)} rows; "
        "ask for fewer rows"
    )


def _fill_pattern(pattern: str, category: str, language: Language, random: Random) -> CustomerMessage:
    """Fill the slots of a pattern, and those of the reply with the same values."""
    values = {slot: random.choice(options) for slot, options in SLOTS[language].items()}
    named = {slot: values[slot] if f"{{{slot}}}" in pattern else word for slot, word in DEFAULT_WORDS[language].items()}
    sentence = _add_typo(pattern, random) if language == "en" else pattern
    message = random.choice(GREETINGS[language]).format(sentence.format(**values), **values)
    return CustomerMessage(message, category, _reply(category, language, named), language)


def _add_typo(pattern: str, random: Random) -> str:
    words = [word for word in TYPOS if word in pattern]
    if not words or random.random() >= TYPO_RATE:
        return pattern
    word = random.choice(words)
    return pattern.replace(word, TYPOS[word], 1)


def _reply(category: str, language: Language, values: Mapping[str, str]) -> str:
    return f"{REPLIES[language][category].format(**values)} {SIGNATURES[language]}"


def _instruction() -> str:
    meanings = {
        "billing": "charges, prices paid, invoices, refunds that have not reached the bank",
        "delivery": "parcels that are late, lost, on their way or need another address",
        "returns": "sending back or exchanging something that was bought",
        "account": "login, password, personal details, newsletters",
        "product": "questions about an item: material, size, stock, care, warranty",
    }
    # No item or sentence of these is in the corpus.
    examples = {
        "The lantern I ordered has not come yet.": "delivery",
        "You charged me $45 more than I agreed to.": "billing",
        "Does the lantern need batteries?": "product",
        "I do not remember my password.": "account",
        "I do not like the lantern, please take it back.": "returns",
    }
    lines = [
        "You answer customers of Foreword, an online shop for home and travel goods.",
        "Read the message. Write two lines and nothing else.",
        "Line 1: one category, in lower case, in English: " + ", ".join(CATEGORIES) + ".",
        "Line 2: the house reply of that category, in the customer's language, English or Chinese.",
        "",
    ]
    for category in CATEGORIES:
        lines.append(f"{category}: {meanings[category]}.")
        lines += [_reply(category, language, {"item": "[item]", "amount": "[amount]"}) for language in REPLIES]
    lines += [
        "",
        "Put the item or the amount from the message in place of [item] or [amount]. "
        "If the message names none, write order or recent; in Chinese, 订单 or 这笔.",
        "",
    ]
    for message, category in examples.items():
        row = CustomerMessage(message, category, _reply(category, "en", {"item": "lantern", "amount": "$45"}), "en")
        lines += [TEMPLATE.replace("{message}", message).replace("{target:answer}", row.answer), ""]
    return "\n".join([*lines, TEMPLATE.partition("{target:")[0]])


INSTRUCTION = _instruction()
"""The prompt of the baseline: the rules of the corpus in words, and an example of each category (few-shot).
Give it verbatim, outside the chat template: the untrained model does better so."""


def base_prompt(message: str) -> str:
    """The written instruction around one message, for the base model without a prefix."""
    return INSTRUCTION.replace("{message}", message)
