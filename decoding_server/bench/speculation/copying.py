"""Prompts whose answers repeat most of them: edits, quotations, conversions. Written for this benchmark."""

NOTICE = """The reading room on the second floor will be closed from Monday, 4 March, until Friday, 8 March, while
the lamps above the long tables are replaced. Books that were ordered for that week can be collected at the desk
beside the main entrance between nine and five. The quiet room on the ground floor stays open as usual. Please do
not leave coats or bags in the lockers of the second floor over the weekend; they will be emptied on Sunday
evening, and what is found will be kept at the desk for one month."""

RECIPE = """Soak 200 grams of chickpeas overnight and drain them. Chop one onion and two cloves of garlic, and
cook them in three spoons of oil over low heat until they are soft. Add a spoon of cumin, half a spoon of paprika,
the chickpeas and a litre of water. Simmer for one hour. Add four chopped tomatoes and simmer for another twenty
minutes. Season with salt and the juice of half a lemon, and serve with flat bread."""

FUNCTION = '''def moving_average(values, size):
    """Means of every run of `size` neighbouring values."""
    if size < 1:
        raise ValueError("size must be positive")
    result = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= size:
            total -= values[index - size]
        if index >= size - 1:
            result.append(total / size)
    return result
'''

CLASS = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
"""

TABLE = """name,city,year,visitors
Harbour Museum,Westport,1931,48210
Clock Tower,Oldbridge,1874,12905
Glass House,Lindenau,1988,30477
Salt Mine,Hallbach,1712,65120
Paper Mill,Oldbridge,1803,9342
Observatory,Greyhill,1957,21800"""

MINUTES = """Present: Anna Berg, Tom Okafor, Li Wei, Marta Silva. The meeting began at ten. Anna reported that the
new pump was delivered on Tuesday and works. Tom said that the invoice is 340 euros higher than the offer and that
he will call the supplier. Li proposed to move the next inspection from the third of May to the seventeenth; all
agreed. Marta asked for a second key to the storage room. Tom will have one made. The meeting ended at ten to
eleven."""

COPYING: tuple[str, ...] = (
    f"Repeat the following notice word for word.\n\n{NOTICE}",
    f"Rewrite this notice for April instead of March. Change nothing else.\n\n{NOTICE}",
    f"Copy the recipe below, but use beans instead of chickpeas.\n\n{RECIPE}",
    f"Number the sentences of this recipe and write one per line, unchanged.\n\n{RECIPE}",
    f"Rename the parameter `size` to `window` and print the whole function.\n\n```python\n{FUNCTION}```",
    f"Add type hints to this function. Print the whole function.\n\n```python\n{FUNCTION}```",
    f"Add a docstring to every method of this class and print the whole class.\n\n```python\n{CLASS}```",
    f"Rename the class to Wallet and print all of it, otherwise unchanged.\n\n```python\n{CLASS}```",
    f"Convert this table to JSON, a list with one object per row.\n\n{TABLE}",
    f"Print this table again without the column `city`.\n\n{TABLE}",
    f"Quote, word for word, every sentence of these minutes that mentions Tom.\n\n{MINUTES}",
    f"Print these minutes again with every name in capital letters.\n\n{MINUTES}",
)
